"""Other frameworks' own losses, advantages and ratios on the golden vectors, called where they are installed."""
