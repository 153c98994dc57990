"""The papers' studies, one module or package each: run -> tables, claims -> verdicts.

A study's module offers `parts(settings) -> list[Part]` and `claims(folder) -> list[Claim]`; `fisherlab.plots.<name>`
draws its figures from the tables.
"""

STUDIES = {
    "kunstner2019": "fisherlab.studies.kunstner2019",
    "fujimori2022": "fisherlab.studies.fujimori2022",
    "martens2015": "fisherlab.studies.martens2015",
    "sun2017": "fisherlab.studies.sun2017",
    "karakida2020": "fisherlab.studies.karakida2020",
}
