"""The page of a comparison: one HTML file that gives the answer first, and after it all that the answer rests on."""

from .write import PAGE, leave_page, make_anew, page_of, write_page

__all__ = ["PAGE", "leave_page", "make_anew", "page_of", "write_page"]
