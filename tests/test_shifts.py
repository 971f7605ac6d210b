"""Shifts of images: what each does to pixels, what it leaves alone, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.preprocessing import StandardScaler

from bnbook import data, shifts

f32, f64 = np.float32, np.float64
LAYOUTS = [(3, 36), (3, 6, 6), (3, 1, 6, 6), (3, 2, 6, 6), (2, 5, 7), (2, 3, 5, 7)]
SQUARE = [shape for shape in LAYOUTS if shape[-1] != 7]

# Each function with settings that change an image.
FUNCTIONS = {
    "affine": lambda x: shifts.affine(x, 0.3, 0.35),
    "invert": shifts.invert,
    "noise": lambda x: shifts.noise(x, 0.3, np.random.default_rng(0)),
    "translate": lambda x: shifts.translate(x, 1, -2, fill=0.1),
    "rotate": lambda x: shifts.rotate(x, 25.0, fill=0.1),
    "standardize": shifts.standardize,
}
every_function = pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
every_layout = pytest.mark.parametrize("shape", LAYOUTS, ids=str)


def images(shape=(3, 6, 6), dtype=f64, seed=0):
    """Pixels in [0, 1]."""
    return np.random.default_rng(seed).random(shape).astype(dtype)


# --- All shifts ---------------------------------------------------------------------------------


@every_function
@every_layout
@pytest.mark.parametrize("dtype", [f32, f64], ids=["float32", "float64"])
def test_shape_and_dtype_are_kept_and_the_images_are_not_changed_in_place(function, shape, dtype):
    x = images(shape, dtype)
    before = x.copy()
    y = function(x)
    assert y.shape == shape
    assert y.dtype == dtype
    assert not np.shares_memory(x, y)
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "noise"])
def test_every_image_is_treated_like_one_that_comes_alone(name):
    function, x = FUNCTIONS[name], images((4, 1, 6, 6))
    np.testing.assert_allclose(function(x), np.concatenate([function(one[None]) for one in x]), atol=1e-12)


@every_function
def test_flat_images_and_images_with_a_channel_give_the_same_pixels(function):
    x = images((3, 6, 6))
    for shape in [(3, 36), (3, 1, 6, 6)]:
        np.testing.assert_allclose(function(x.reshape(shape)).ravel(), function(x).ravel(), atol=1e-12)


@every_function
def test_views_with_strides_give_what_their_copies_give(function):
    x = np.moveaxis(images((6, 6, 4)), -1, 0)[::2, ::-1]
    np.testing.assert_allclose(function(x), function(x.copy()), atol=1e-12)


@every_function
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 36), int), "x: got dtype int64, allowed are float32 and float64"),
        (np.zeros(36), r"x: got shape \(36,\), expected \(N, D\), \(N, H, W\) or \(N, C, H, W\)"),
        (np.zeros((1, 1, 1, 6, 6)), r"x: got shape \(1, 1, 1, 6, 6\), expected"),
        (np.zeros((2, 0, 6)), r"x: got shape \(2, 0, 6\), expected"),
        (np.full((2, 36), np.nan), "x: got NaN or infinity in 72 of 72 values, all must be finite"),
        (np.full((2, 36), np.inf), "x: got NaN or infinity"),
    ],
    ids=["integers", "one image", "five axes", "no pixels", "nan", "infinity"],
)
def test_what_is_no_stack_of_images_is_named_and_refused(function, x, message):
    with pytest.raises(ValueError, match=message):
        function(x)


@every_function
def test_no_image_at_all_gives_no_image(function):
    assert function(np.zeros((0, 6, 6))).shape == (0, 6, 6)


@pytest.mark.parametrize("name", ["translate", "rotate"])
def test_flat_images_that_are_not_square_are_refused_where_rows_matter(name):
    with pytest.raises(ValueError, match=r"x: got 35 pixels an image \(shape \(2, 35\)\), expected a square"):
        FUNCTIONS[name](np.zeros((2, 35)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: shifts.affine(x, np.nan), "scale: got nan, expected a finite number"),
        (lambda x: shifts.affine(x, 1, np.inf), "offset: got inf, expected a finite number"),
        (
            lambda x: shifts.noise(x, -0.1, np.random.default_rng(0)),
            "std: got -0.1, expected a finite number, 0 or larger",
        ),
        (lambda x: shifts.noise(x, np.inf, np.random.default_rng(0)), "std: got inf, expected a finite"),
        (lambda x: shifts.noise(x, 0.1, 0), "rng: got 0, expected a generator"),
        (lambda x: shifts.translate(x, 1.5), "down: got 1.5, expected a whole number"),
        (lambda x: shifts.translate(x, 0, 1.0), "right: got 1.0, expected a whole number"),
        (lambda x: shifts.translate(x, fill=np.nan), "fill: got nan, expected a finite number"),
        (lambda x: shifts.rotate(x, np.inf), "degrees: got inf, expected a finite number"),
        (lambda x: shifts.rotate(x, 1, fill=np.nan), "fill: got nan, expected a finite number"),
        (lambda x: shifts.standardize(x, 0), "eps: got 0, expected a finite number above 0"),
        (lambda x: shifts.standardize(x, np.inf), "eps: got inf, expected a finite number above 0"),
        (lambda x: shifts.standardize(x, np.nan), "eps: got nan, expected a finite number above 0"),
    ],
)
def test_a_setting_out_of_range_is_named_and_refused(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call(images())


# --- Light ----------------------------------------------------------------------------------------


@every_layout
@given(scale=st.floats(-2, 2), offset=st.floats(-1, 1))
def test_a_change_of_light_is_the_same_line_for_every_pixel(shape, scale, offset):
    x = images(shape)
    expected = [scale * pixel + offset for pixel in x.ravel().tolist()]
    np.testing.assert_allclose(shifts.affine(x, scale, offset).ravel(), expected, rtol=1e-15, atol=1e-15)


def test_without_an_offset_black_stays_black():
    assert shifts.affine(np.zeros((1, 4)), 0.3).max() == 0


def test_inverting_turns_black_into_white_and_twice_gives_the_image_back():
    np.testing.assert_array_equal(shifts.invert(np.array([[0.0, 0.25, 1.0, 0.5]])), [[1, 0.75, 0, 0.5]])
    np.testing.assert_allclose(shifts.invert(shifts.invert(images())), images(), atol=1e-15)


# --- Noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("std", [0.3, 0.5])
def test_noise_is_gaussian_with_mean_zero_and_the_given_deviation(std):
    x = images((100, 784), f32)
    drawn = (shifts.noise(x, std, np.random.default_rng(0)) - x).ravel()
    assert stats.kstest(drawn, stats.norm(0, std).cdf).pvalue > 0.01
    assert drawn.std() == pytest.approx(std, rel=0.01)


def test_noise_is_drawn_anew_for_every_pixel_and_image_and_is_not_clipped():
    drawn = shifts.noise(np.zeros((50, 4, 100)), 1.0, np.random.default_rng(0))
    assert np.unique(drawn).size == drawn.size
    assert np.abs(np.corrcoef(drawn.reshape(50, -1))[np.triu_indices(50, 1)]).max() < 0.25
    assert drawn.min() < -1
    assert drawn.max() > 2


def test_noise_repeats_with_its_seed_and_moves_on_with_its_generator():
    x, rng = images(), np.random.default_rng(5)
    first, second = shifts.noise(x, 0.3, rng), shifts.noise(x, 0.3, rng)
    np.testing.assert_array_equal(first, shifts.noise(x, 0.3, np.random.default_rng(5)))
    assert np.abs(first - second).min() > 0


def test_noise_of_deviation_zero_leaves_the_image():
    np.testing.assert_array_equal(shifts.noise(images(), 0, np.random.default_rng(0)), images())


# --- Place ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SQUARE, ids=str)
@given(down=st.integers(-8, 8), right=st.integers(-8, 8))
def test_each_pixel_moves_by_the_given_rows_and_columns_and_the_rest_is_filled(shape, down, right):
    x = images(shape).reshape(-1, 6, 6)
    expected = np.full_like(x, 0.7)
    for row in range(6):
        for column in range(6):
            if 0 <= row + down < 6 and 0 <= column + right < 6:
                expected[:, row + down, column + right] = x[:, row, column]
    moved = shifts.translate(x.reshape(shape), down, right, fill=0.7)
    np.testing.assert_array_equal(moved.reshape(-1, 6, 6), expected)


def test_down_and_right_are_what_a_reader_of_the_picture_calls_so_and_the_frame_fills_with_black():
    x = np.arange(1.0, 10).reshape(1, 3, 3)
    np.testing.assert_array_equal(shifts.translate(x, down=1)[0], [[0, 0, 0], [1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(shifts.translate(x, right=1)[0], [[0, 1, 2], [0, 4, 5], [0, 7, 8]])
    np.testing.assert_array_equal(shifts.translate(x), x)


def test_numpy_integers_are_whole_numbers():
    x = images()
    np.testing.assert_array_equal(shifts.translate(x, np.int64(1)), shifts.translate(x, 1))


@pytest.mark.parametrize("quarters", [-1, 1, 2, 3, 4])
def test_a_quarter_turn_goes_counterclockwise_and_loses_nothing(quarters):
    x = images((2, 3, 6, 6))
    expected = np.rot90(x, quarters, axes=(-2, -1))
    np.testing.assert_allclose(shifts.rotate(x, 90 * quarters), expected, atol=1e-12)


def test_turning_keeps_the_frame_of_images_that_are_not_square():
    x = images((2, 5, 7))
    np.testing.assert_allclose(shifts.rotate(x, 180), x[:, ::-1, ::-1], atol=1e-12)


@given(degrees=st.floats(-180, 180))
def test_a_round_picture_stays_as_it_is_and_a_pixel_off_centre_goes_round(degrees):
    rows, columns = np.mgrid[:21, :21] - 10.0
    disc = np.exp(-(rows**2 + columns**2) / 18)[None]
    np.testing.assert_allclose(shifts.rotate(disc, degrees), disc, atol=0.04)
    # A blob to the right of the centre: its centre of mass, with rows counted downwards.
    blob = np.exp(-(rows**2 + (columns - 5) ** 2) / 2)[None]
    turned = shifts.rotate(blob, degrees)[0]
    mean_row, mean_column = (turned * rows).sum() / turned.sum(), (turned * columns).sum() / turned.sum()
    angle = np.deg2rad(degrees)
    np.testing.assert_allclose([mean_column, -mean_row], [5 * np.cos(angle), 5 * np.sin(angle)], atol=0.05)


def test_turning_interpolates_between_pixels_and_makes_none_brighter_than_all():
    turned = shifts.rotate(images((5, 8, 8)), 33.0)
    assert turned.min() >= 0
    assert turned.max() <= 1


def test_corners_that_turn_into_the_frame_get_the_fill():
    turned = shifts.rotate(np.ones((1, 9, 9)), 45, fill=0.25)[0]
    assert turned[0, 0] == turned[-1, -1] == 0.25
    assert turned[4, 4] == pytest.approx(1)
    assert shifts.rotate(np.ones((1, 9, 9)), 45)[0, 0, 0] == 0


# --- Standardizing --------------------------------------------------------------------------------


@every_layout
def test_standardizing_does_to_each_image_what_scikit_learn_does_to_a_column(shape):
    x = images(shape)
    expected = StandardScaler().fit_transform(x.reshape(len(x), -1).T).T.reshape(shape)
    np.testing.assert_allclose(shifts.standardize(x, eps=1e-14), expected, rtol=1e-10, atol=1e-12)


@given(scale=st.floats(0.05, 20), offset=st.floats(-5, 5))
def test_a_change_of_light_is_undone(scale, offset):
    x = images((3, 784), seed=1)
    changed = shifts.standardize(shifts.affine(x, scale, offset))
    # eps = 1e-8 against a variance of 1/12 times 0.05 squared, at the least.
    np.testing.assert_allclose(changed, shifts.standardize(x), rtol=3e-5, atol=1e-10)


@pytest.mark.parametrize("name", ["dark", "hazy", "dark, hazy"])
def test_the_light_of_the_list_is_undone_in_float32_on_real_images(name):
    x = data.mnist5k().x_test[:200]
    changed = shifts.standardize(shifts.SHIFTS[name](x, np.random.default_rng(0)))
    np.testing.assert_allclose(changed, shifts.standardize(x), rtol=0, atol=2e-5)


def test_an_inverted_image_becomes_the_negative():
    x = images()
    np.testing.assert_allclose(shifts.standardize(shifts.invert(x)), -shifts.standardize(x), atol=1e-12)


@pytest.mark.parametrize("grey", [0.0, 0.3, 1.0])
def test_an_image_without_contrast_becomes_zero_and_not_amplified_rounding(grey):
    x = np.full((2, 784), grey, f32)
    assert np.abs(shifts.standardize(x)).max() < 1e-3


def test_eps_stands_under_the_root_beside_the_variance():
    x = np.array([[0.0, 2.0, 0.0, 2.0]])
    np.testing.assert_allclose(shifts.standardize(x, eps=3.0), [[-0.5, 0.5, -0.5, 0.5]], rtol=1e-15)


# --- The list -------------------------------------------------------------------------------------


EXPECTED = {
    "none": lambda x, rng: x,
    "dark": lambda x, rng: 0.3 * x,
    "hazy": lambda x, rng: 0.6 * x + 0.4,
    "dark, hazy": lambda x, rng: 0.3 * x + 0.35,
    "noise 0.3": lambda x, rng: x + rng.normal(0, 0.3, x.shape),
    "noise 0.5": lambda x, rng: x + rng.normal(0, 0.5, x.shape),
    "moved 2": lambda x, rng: np.pad(x, [(0, 0), (0, 0), (2, 0)])[:, :, :28],
    "moved 4": lambda x, rng: np.pad(x, [(0, 0), (0, 0), (4, 0)])[:, :, :28],
    "turned 20": lambda x, rng: shifts.rotate(x, 20),
    "turned 40": lambda x, rng: shifts.rotate(x, 40),
    "inverted": lambda x, rng: 1 - x,
}


def test_the_list_names_these_shifts_in_this_order():
    assert list(shifts.SHIFTS) == list(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_list_holds_the_strengths_that_its_names_say(name):
    x = images((3, 28, 28))
    y = shifts.SHIFTS[name](x, np.random.default_rng(3))
    np.testing.assert_allclose(y, EXPECTED[name](x, np.random.default_rng(3)), atol=1e-12)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_shift_of_the_list_serves_flat_digits_and_clothes_with_a_channel(name):
    for x in (data.digits().x_test[:5], data.mnist5k().x_test[:5], data.fashion().x_test[:5]):
        y = shifts.SHIFTS[name](x, np.random.default_rng(0))
        assert (y.shape, y.dtype) == (x.shape, x.dtype)
        assert not np.shares_memory(x, y)


@pytest.mark.parametrize("name", [name for name in EXPECTED if not name.startswith("noise")])
def test_all_shifts_but_noise_keep_pixels_between_black_and_white(name):
    y = shifts.SHIFTS[name](images((3, 28, 28)), np.random.default_rng(0))
    assert y.min() >= 0
    assert y.max() <= 1


def test_every_shift_of_the_list_refuses_what_is_no_image():
    for shift in shifts.SHIFTS.values():
        with pytest.raises(ValueError, match="x: got shape"):
            shift(np.zeros(5), np.random.default_rng(0))
