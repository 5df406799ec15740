"""The tests of crungo."""
