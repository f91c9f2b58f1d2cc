"""Views of images: what one is, how it is drawn, how it is made."""
