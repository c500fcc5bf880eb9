"""Write the report of an ablation: tables for scripts, plots and a page for people."""
