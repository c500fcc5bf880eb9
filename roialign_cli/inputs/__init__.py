"""What a user brings: images and box files."""
