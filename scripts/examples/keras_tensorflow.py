"""A Keras model of your own, with dropout, on TensorFlow: how much staleness it bears."""

import os

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow tells a lot about the machine

import keras

import distsgd as ds

keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.layers.Reshape((8, 8, 1)),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10),
    ]
)
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
problem = ds.problems.from_keras(model, ds.data.digits(), loss)
for workers in (1, 4, 16):
    run = ds.simulate(ds.algorithms.downpour(0.1), problem, ds.Fleet(workers), epochs=5)
    print(f"{workers:2} workers: loss {run.history['loss'][-1]:.3f}, accuracy {run.history['accuracy'][-1]:.1%}")
