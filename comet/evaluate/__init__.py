"""Fine-tuning masked LMs on labelled tasks, and scoring them."""
