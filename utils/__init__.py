"""What the numbered scripts stand on: reading, preprocessing, sampling, scoring, stitching and plotting."""
