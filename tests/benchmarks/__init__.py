"""Our stages and the naive way of the post, side by side: `make bench`."""
