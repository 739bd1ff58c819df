"""A result for people: page.py has the blocks of a page, svg.py the plots, samples.py the statistics."""
