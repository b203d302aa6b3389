"""What finished runs left behind, as tables and plots. Nothing here trains."""
