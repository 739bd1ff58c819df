"""How well a model reads and draws: a torch checkpoint or an exported bundle, by the same code, with the same numbers.

subject.py             what is evaluated, as a protocol; checkpoint_subject.py and subject.py fulfil it
read_suite.py          questions about pictures of a style the model never saw
draw_suite.py          drawings of emoji, judged by LabelScorer and by KID-Lite0
shapes_suite.py        drawings of shapes, judged exactly
judge.py        names a picture; trained on other artists' pictures (judge.py keeps it)
judge.py                 EfficientNet-Lite0's features, what the judge looks with
answers.py answers.py      when a reply is right: word for word, and by VQAv2's rule
answers.py            multiple choice in every order of the options
metrics.py metrics.py  the numbers, and the difference of two models: pure functions
draw_sheet.py          the drawings beside the real pictures, as one PNG
html_report.py         all of it on one page
"""
