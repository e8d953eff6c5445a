"""What a method is: a recipe, and one pure function for each part of the weight on a token."""
