"""The longest stretch of a sequence in which nothing occurs twice."""
