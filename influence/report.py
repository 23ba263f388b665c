def write_report(run, *a):
    pass
