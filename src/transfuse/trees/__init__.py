"""Trees of any library in one form, and how much each feature matters to them."""
