"""Fine-tune masked LMs on labelled tasks and score them."""
