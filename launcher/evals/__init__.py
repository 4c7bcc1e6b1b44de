"""What models are judged by: answers, results of each record, metrics, and comparisons."""
