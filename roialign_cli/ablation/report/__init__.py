"""What an ablation leaves behind: tables for scripts, plots and a page for people."""
