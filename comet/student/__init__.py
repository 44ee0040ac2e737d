"""The student model: its shapes, its vocabulary, its head."""
