"""What data are converted to: one file per format, each writing what ``clipdistill.data.sources`` reads back."""
