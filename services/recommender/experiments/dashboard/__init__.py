"""The pages under /dashboard: what experiments show, and the buttons that start and end them.

    ports          what the pages need of the rest of the suite
    pages, create, changes, phases, downloads, users    the routes, one kind a file
    access/        who is looking: sessions, sign-in, forgery
    i18n/          every sentence, in English and in Chinese
    formats        numbers, money and times as the reader writes them
    view/          a Report as rows, sentences and chart data; computes no number of its own
    templates/, static/    Jinja2, one stylesheet, one script

Owns no state and no statistics. Every number on a page is one of `report.Report`, and stands in a table: the charts
are drawn from the same JSON by Plotly, from the installed wheel, and nothing is lost without JavaScript.
"""
