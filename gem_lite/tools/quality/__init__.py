"""Quality: labelled collages made on the fly, and how well maps point at what is in them."""
