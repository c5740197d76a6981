"""One file per stage of training: its networks, and what one update of them computes."""
