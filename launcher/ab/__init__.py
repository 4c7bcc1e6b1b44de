"""A/B tests with people: blind studies of two models' answers, and traffic split between two."""
