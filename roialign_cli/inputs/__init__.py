"""Read the user's inputs: images and box files."""
