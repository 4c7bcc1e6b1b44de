"""The foundation: errors, processes, the run folder, facts of the host. Of other libraries only
what draws on a terminal and serves an app."""
