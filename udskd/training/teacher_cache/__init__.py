"""The teacher's logits of every view, computed once for several runs."""
