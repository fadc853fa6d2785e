"""Pages without external resources: HTML and SVG elements, axes, cards."""
