"""Tests of reports and comparisons."""
