"""From an image and its boxes to rows of region features: preprocessing, RoIs, pooling, checks of values."""
