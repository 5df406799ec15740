"""Moving bytes: descriptors, pumps, pseudo-terminals, the user's terminal."""
