"""What is trained: a teacher, or two students."""
