"""The job system: documents, jobs, results, and the API and dashboard to them. It never touches a tensor."""
