"""The networks of the field's standard comparisons, under the names that papers give them."""
