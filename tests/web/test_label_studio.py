"""Label Studio gets our labels as predictions of its own kind."""

import numpy as np
import pytest

import maskclip
from maskclip.clip.prompts import class_rows
from maskclip.clip.weights import load_clip
from maskclip.core.vocabulary import Vocabulary
from maskclip.plus.config import StudentConfig
from maskclip.plus.files import TrainedStudent, save_student
from maskclip.plus.student import build_student
from maskclip.web.asking import Limits
from maskclip.web.task_files import TaskFiles

CONFIG = """<View>
  <Image name="photo" value="$image"/>
  <BrushLabels name="what" toName="photo" maskclip_refine="none" maskclip_background="0.3">
    <Label value="Kuh" predicted_values="cow"/>
    <Label value="lawn" alias="green" hint="grass, meadow"/>
    <View><Label value="dog, or cat"/></View>
  </BrushLabels>
</View>"""
STUDENT = CONFIG.replace(' maskclip_background="0.3"', "")
LINES = {
    "Kuh": ["cow"],
    "green": ["lawn", "green", "grass", "meadow"],
    "dog, or cat": ["dog, or cat"],
}


@pytest.fixture
def files(tmp_path, scene):
    (tmp_path / "a.png").write_bytes(scene[0])
    (tmp_path / "broken.png").write_bytes(scene[0][:200])
    return TaskFiles([tmp_path], max_bytes=2**20)


def tasks(*names):
    return [
        {"id": number, "data": {"image": f"/data/local-files/?d={name}"}, "project": 1}
        for number, name in enumerate(names)
    ]


def predict(client, config=CONFIG, *, names=("a.png",), **kwargs):
    body = {"tasks": tasks(*names), "label_config": config, "params": {"context": None}}
    return client.post("/predict", json=body, **kwargs)


def setup(client, config=CONFIG):
    body = {"project": "1.2", "schema": config, "hostname": "http://x", "access_token": "secret"}
    return client.post("/setup", json=body)


@pytest.mark.filterwarnings("ignore::maskclip.core.errors.MaskCLIPWarning")
def test_predictions_are_the_labels_of_segment(serve, scene, files):
    decoder = pytest.importorskip("label_studio_brush_rle_rs")
    client = serve(files=files)
    answer = predict(client).json()
    (prediction,) = answer["results"]
    found = maskclip.load("emoji", device="cpu").segment(
        scene[1], LINES, refine="none", background=0.3
    )
    covered = np.zeros(found.labels.shape, bool)
    for region in prediction["result"]:
        assert (region["type"], region["from_name"], region["to_name"]) == (
            "brushlabels",
            "what",
            "photo",
        )
        assert (region["original_width"], region["original_height"]) == (96, 96)
        (name,) = region["value"]["brushlabels"]
        layer = np.array(decoder.decode_rle(region["value"]["rle"], False)).reshape(96, 96, 4)
        mask = found.labels == found.vocabulary.names.index(name)
        assert np.array_equal(layer[..., 3] > 0, mask)
        assert region["score"] == pytest.approx(found.scores[mask].mean(), abs=1e-4)
        covered |= mask
    assert {region["value"]["brushlabels"][0] for region in prediction["result"]} >= {"Kuh"}
    assert np.array_equal(covered, found.labels > 0)
    assert prediction["score"] == pytest.approx(found.scores[covered].mean(), abs=1e-4)
    version = setup(client).json()["model_version"]
    assert answer["model_version"] == prediction["model_version"] == version


def student_file(folder, classes, **fields):
    """The file of a student of these classes, whose rows are those of emoji-vit."""
    vocabulary = Vocabulary.parse(classes)
    rows = class_rows(load_clip("emoji-vit"), vocabulary.prompts, templates="published")
    config = StudentConfig(depth=50, width=8, embed_dim=rows.shape[1], **fields)
    trained = TrainedStudent(build_student(config, rows).eval(), vocabulary, clip="emoji-vit")
    save_student(trained, folder / "student.safetensors")
    return folder / "student.safetensors"


@pytest.mark.filterwarnings("ignore::maskclip.core.errors.MaskCLIPWarning")
@pytest.mark.parametrize("takes", [True, False])
def test_a_student_looks_for_labels_that_it_was_not_trained_on(
    serve, scene, files, tmp_path, takes
):
    file = student_file(tmp_path, ["Cow", "grass", "sky"], trained_rows=not takes)
    (prediction,) = predict(serve(models=(str(file),), files=files), STUDENT).json()["results"]
    lines = {"Cow": ["Cow"], "grass": ["grass"], "sky": ["sky"]}
    if takes:
        lines["dog, or cat"] = ["dog, or cat"]
    found = maskclip.load(str(file), device="cpu").segment(scene[1], lines, refine="none")
    called = {"Cow": "Kuh", "grass": "green", "dog, or cat": "dog, or cat"}
    coverage = found.coverage()
    expected = {label for name, label in called.items() if coverage.get(name)}
    assert expected
    got = {region["value"]["brushlabels"][0]: region for region in prediction["result"]}
    assert set(got) == expected
    for name, label in called.items():
        if label in got:
            mask = found.labels == found.vocabulary.names.index(name)
            assert got[label]["score"] == pytest.approx(found.scores[mask].mean(), abs=1e-4)


def test_a_configuration_of_too_many_brushes_is_refused(serve, files):
    brush = '<BrushLabels name="b" toName="i"><Label value="cow"/>'
    config = f'<View><Image name="i" value="$i"/>{brush * 17}{"</BrushLabels>" * 17}</View>'
    answer = setup(serve(files=files), config)
    assert (answer.status_code, answer.json()) == (
        422,
        {"error": "the labelling configuration has 17 brushes, and at most 16 are read"},
    )


def test_the_version_changes_with_what_is_looked_for(serve, files):
    client = serve(files=files)
    versions = {
        setup(client, config).json()["model_version"]
        for config in (
            CONFIG,
            CONFIG.replace("cow", "ox"),
            CONFIG.replace("Kuh", "Rind"),
            CONFIG.replace("0.3", "0.4"),
            CONFIG.replace('maskclip_refine="none"', 'maskclip_method="published"'),
        )
    }
    assert len(versions) == 5
    assert all(version.startswith("maskclip emoji ") for version in versions)


def test_a_task_that_cannot_be_labelled_leaves_the_others(serve, files, tmp_path):
    names = ["none.png", "a.png", "broken.png", "../a.png", "a.png"]
    results = predict(serve(files=files), names=names).json()["results"]
    assert ["result" in each for each in results] == [False, True, False, False, True]
    assert results[1] == results[4]
    for failed in (results[0], results[2], results[3]):
        assert failed["error"]
        assert str(tmp_path) not in failed["error"]


def test_tasks_without_an_image_or_with_too_large_a_one_say_so(serve, files):
    client = serve(files=files, limits=Limits(max_pixels=1000))
    assert "1,000" in predict(client).json()["results"][0]["error"]
    body = {"tasks": [{"data": {"text": "x"}}, {"data": {"image": [1]}}], "label_config": CONFIG}
    for result in client.post("/predict", json=body).json()["results"]:
        assert result["error"].startswith("a task without an image: expected its address")


def test_the_key_is_a_password_of_basic_auth(serve, files):
    client = serve(files=files, key="secret")
    for auth, status in ((None, 401), (("label-studio", "x"), 401), (("any", "secret"), 200)):
        assert client.get("/health", auth=auth).status_code == status
        assert predict(client, names=(), auth=auth).status_code == status
    assert client.get("/health", auth=("any", "secret")).json()["status"] == "UP"


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("</View>", "", "the labelling configuration is no XML"),
        ("<View>", "<!DOCTYPE a><View>", "the labelling configuration declares a document type"),
        ("BrushLabels", "PolygonLabels", "the labelling configuration has no brush"),
        ('toName="photo"', 'toName="text"', "the labelling configuration has no brush"),
        ("<Label ", "<Other ", "the brush 'what' has no labels"),
        (
            "maskclip_refine",
            "maskclip_rifine",
            "no value is called 'maskclip_rifine' (did you mean maskclip_refine",
        ),
        ("maskclip_refine", "maskclip_words", "maskclip_words: the words are those of the labels"),
        ('maskclip_refine="none"', 'maskclip_model="/etc/passwd"', "no model '/etc/passwd' here"),
        ('"0.3"', '"x, cow"', "the background word 'cow' is also one of the classes"),
        ('"cow"', f'"{"cow" * 400}"', "the class name"),
    ],
)
def test_a_configuration_that_cannot_be_used_gets_one_line(serve, files, old, new, line):
    config = CONFIG.replace(old, new)
    client = serve(files=files)
    for answer in (setup(client, config), predict(client, config)):
        assert answer.status_code == 422
        assert answer.json()["error"].startswith(line)


def test_two_brushes_give_regions_of_their_own(serve, files):
    second = (
        CONFIG.replace('name="what"', 'name="other"')
        .replace("<View>", "")
        .replace('<Image name="photo" value="$image"/>', "")
    )
    both = CONFIG.replace("</View>\n  </BrushLabels>\n</View>", "</View>\n  </BrushLabels>\n")
    second = second.replace("</View>\n  </BrushLabels>", "\n  </BrushLabels>")
    (prediction,) = predict(serve(files=files), both + second).json()["results"]
    names = {region["from_name"] for region in prediction["result"]}
    assert names == {"what", "other"}
    assert len({region["id"] for region in prediction["result"]}) == len(prediction["result"])


def test_a_service_that_may_read_nothing_says_how_it_may(serve):
    answer = setup(serve())
    assert answer.status_code == 422
    assert "`root` or `label_studio`" in answer.json()["error"]
