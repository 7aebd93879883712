"""What the server says of its offloading: its state, its tiers, what happened lately."""
