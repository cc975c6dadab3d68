"""What people look at: reports, pages, plots and tables."""
