"""Write a checkpoint as the authors' code does, and what its network gives; run by an interpreter with TensorFlow.

    python tensorflow_reference.py FOLDER POINTS CHANNELS HIDDEN SIDE

Writes FOLDER/model-7.index, FOLDER/model-7.data-00000-of-00001, FOLDER/checkpoint and FOLDER/example.npz with
images uint8 [2, SIDE, SIDE, 3], points float32 [2, POINTS, 3] and scale float32 [2]. The graph is written with plain
TensorFlow operations under the names that slim gave its variables; the optimizer's are saved too.
"""

import os
import sys

import numpy as np

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow.compat.v1 as tf

tf.disable_v2_behavior()


def variables(name, shape, fan_in):
    with tf.variable_scope(name, reuse=tf.AUTO_REUSE):
        weights = tf.get_variable(
            "weights", shape, initializer=tf.random_normal_initializer(stddev=(2 / fan_in) ** 0.5)
        )
        biases = tf.get_variable("biases", shape[-1:], initializer=tf.random_normal_initializer(stddev=0.1))
    return weights, biases


def convolution(name, x, out, kernel, stride):
    into = int(x.shape[-1])
    weights, biases = variables(name, [kernel, kernel, into, out], kernel * kernel * into)
    y = tf.nn.conv2d(x, weights, strides=[1, stride, stride, 1], padding="SAME")
    return tf.nn.leaky_relu(y + biases)  # slope 0.2 is TensorFlow's default


def dense(name, x, out):
    weights, biases = variables(name, [int(x.shape[-1]), out], int(x.shape[-1]))
    return tf.matmul(x, weights) + biases


def network(images, points, channels, hidden):
    x = convolution("encoder/Conv", images * 2 - 1, channels, 5, 2)
    for block in range(4):
        channels *= 2
        x = convolution(f"encoder/Conv_{2 * block + 1}", x, channels, 3, 2)
        x = convolution(f"encoder/Conv_{2 * block + 2}", x, channels, 3, 1)
    x = tf.reshape(x, [images.shape[0], -1])
    for suffix in ("", "_1", "_2"):
        x = tf.nn.leaky_relu(dense(f"encoder/fully_connected{suffix}", x, hidden))
    cloud = tf.tanh(tf.reshape(dense("decoder/fully_connected", x, 3 * points), [-1, points, 3])) / 2
    unused = [dense("decoder/fully_connected_1", x, points), dense("decoder/fully_connected_2", x, 1)]
    scale = tf.sigmoid(dense("decoder/fully_connected_3", x, 1))
    return cloud, scale, unused


def main(folder, points, channels, hidden, side):
    os.makedirs(folder, exist_ok=True)
    tf.set_random_seed(1)
    pixels = np.random.default_rng(1).integers(0, 256, (2, side, side, 3), dtype=np.uint8)
    images = tf.placeholder(tf.float32, [2, side, side, 3])
    cloud, scale, unused = network(images, points, channels, hidden)
    loss = tf.reduce_sum(cloud**2) + tf.reduce_sum(scale) + sum(tf.reduce_sum(u**2) for u in unused)
    step = tf.train.get_or_create_global_step()
    train = tf.train.AdamOptimizer(1e-3).minimize(loss, step)
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        feed = {images: pixels / np.float32(255)}
        session.run(train, feed)
        saved = tf.train.Saver().save(session, f"{folder}/model", global_step=7, write_meta_graph=False)
        points_np, scale_np = session.run([cloud, scale], feed)
    np.savez_compressed(f"{folder}/example.npz", images=pixels, points=points_np, scale=scale_np[:, 0])
    print(f"TensorFlow {tf.__version__}: {saved}")


if __name__ == "__main__":
    main(sys.argv[1], *(int(argument) for argument in sys.argv[2:]))
