"""A pandas table: labels of text, truth values, a column of text made into numbers."""

import pandas as pd
from sklearn.datasets import load_wine

import distsgd as ds

wine = load_wine(as_frame=True)
table = wine.data.assign(grower=wine.target.map(lambda number: f"grower {number}"))
table["strong"] = table["alcohol"] > 13.0
table["colour"] = pd.cut(table.pop("hue"), 3, labels=["brown", "red", "purple"])
table = pd.get_dummies(table, columns=["colour"])  # a column of 0 and 1 for each colour

data = ds.data.frame(table, label="grower", scale="standard", name="wine")
problem = ds.problems.softmax(data, l2=1e-3)
fleet = ds.Fleet(workers=8, compute=ds.lognormal(1.0, 0.5))
run = ds.simulate(ds.algorithms.downpour(0.1), problem, fleet, epochs=30, batch=8)

print(f"{data.samples} wines, {data.features} features, {', '.join(data.classes)}")
print(f"training loss {run.history['loss'][-1]:.3f}, accuracy {run.history['accuracy'][-1]:.2f}")
