"""What a prediction is and how it lives: values, rules and ports, on the standard library alone."""
