"""Evaluation: the loop over videos, accuracy with counts, cost by stage, and the files and tables that say so."""
