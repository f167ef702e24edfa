"""`make report`: one HTML file with the results of all runs, their charts and their stories."""
