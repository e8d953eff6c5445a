"""What `firstorder report` is made of: reading run folders, the figures, their data, the page."""
