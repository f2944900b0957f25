"""Networks: linen modules that know no method."""
