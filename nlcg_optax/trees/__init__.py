"""Inner products of parameter trees."""
