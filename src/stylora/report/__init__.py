"""A run as a page to look at: curves, the style-against-forgetting plane, samples side by side; in Chinese and in English.

    words.py      every fixed word, in both languages; written.py how figures are written
    stage.py      what a stage left, as plain values, and the points that follow from them
    figures.py    smoothing, thinning, errors of changes, where overfitting begins
    reading.py    the headline, and what it means in a sentence
    panel.py      what a plot is made of; panels.py which there are: curves.py and plane.py
    drawing.py    a plot as matplotlib draws it, in the colours of colours.py; plot.py as SVG for the page, or as PNG
    evaluated.py  what `stylora evaluate` measured; told.py data, settings and environment
    page.py       the page; page.html.jinja, page.css and page.js are its parts
    table.py      the same headline in a terminal, and as JSON
"""
