"""A result as one HTML file that needs nothing else: svg.py draws, plots.py says what, page.py writes it."""
