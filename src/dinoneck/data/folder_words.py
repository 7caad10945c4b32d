"""What the names of folders and files say: images, masks, or a part of a data set such as train.

All words are in lower case.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable


def plain_word(word: str) -> str:
    """Return a word as the sets of words have it: in lower case and without accents."""
    return _without_accents(word).lower()


def _without_accents(name: str) -> str:
    decomposed = unicodedata.normalize("NFKD", name)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _plain(*words: str) -> set[str]:
    return {plain_word(word) for word in words}


_IMAGES = {"image", "images", "img", "imgs", "jpegimages"}
_PHOTOS = {"photo", "photos", "picture", "pictures", "pics"}
# in German, Spanish, Italian, Portuguese and Dutch, without accents; French has the English word
_IMAGES_ELSEWHERE = {"bild", "bilder", "imagen", "imagenes", "immagine", "immagini", "imagem"}
_IMAGES_ELSEWHERE |= {"imagens", "beeld", "beelden", "afbeelding", "afbeeldingen"}
# in Chinese, Japanese, Korean, Russian, Polish, Czech, Hungarian, Turkish, Finnish and Danish
_IMAGES_ELSEWHERE |= _plain(
    "图像", "图片", "影像", "照片", "圖像", "圖片", "画像", "写真", "이미지"
)
_IMAGES_ELSEWHERE |= _plain("사진", "изображения", "изображение", "снимки", "obrazy", "zdjęcia")
_IMAGES_ELSEWHERE |= _plain(
    "snímky", "obrázky", "képek", "görüntüler", "resimler", "kuvat", "billeder"
)
_MASKS_ELSEWHERE = {"maske", "masken", "mascara", "mascaras", "masque", "masques", "maschera"}
_MASKS_ELSEWHERE |= {"maschere", "masker", "maskers", "etiqueta", "etiquetas", "etichetta"}
_MASKS_ELSEWHERE |= {"etichette", "etiquette", "etiquettes", "segmentierung", "segmentierungen"}
_MASKS_ELSEWHERE |= {"segmentacion", "segmentazione", "segmentacao", "segmentatie"}
_MASKS_ELSEWHERE |= _plain("掩码", "掩膜", "掩模", "遮罩", "标签", "标注", "標籤", "標註", "マスク")
_MASKS_ELSEWHERE |= _plain(
    "ラベル", "마스크", "라벨", "маски", "маска", "разметка", "maski", "etykiety"
)
_MASKS_ELSEWHERE |= _plain("masky", "maszkok", "maskeler", "etiketler", "maskit")

IMAGE_FOLDERS = _IMAGES | {"leftimg8bit"}
"""Names of folders that are never a class, next to another folder."""
IMAGE_WORDS = _IMAGES | _IMAGES_ELSEWHERE | {"leftimg"}
"""Words in the names of folders of images, see :func:`words_of`."""
VAGUE_WORDS = _PHOTOS | {"rgb", "input", "inputs", "raw", "data"}
"""Words in the names of folders that hold images, or are a class of them."""
VAGUE_WORDS |= {"original", "originals", "orig", "frame", "frames", "foto", "fotos"}
MASK_WORDS = {"mask", "masks", "label", "labels", "annotation", "annotations", "annot", "annots"}
"""Words in the names of folders, and at the end of the names of files, of masks."""
MASK_WORDS |= {"anno", "gt", "gtfine", "gtcoarse", "groundtruth", "truth", "seg", "segs", "segm"}
MASK_WORDS |= {"segmentation", "segmentations", "semantic", "trimap", "trimaps", "target"}
MASK_WORDS |= {"targets", "labelids", "labeltrainids", "lbl", "lbls"} | _MASKS_ELSEWHERE
MAYBE_MASK_WORDS = {"binary", "bin", "bw", "manual", "labelled", "labeled", "outline", "outlines"}
"""Words in the names of folders and files that are masks, if their pixels look so and the rest of their names agree."""
MAYBE_MASK_WORDS |= {"contour", "contours", "silhouette", "silhouettes", "roi", "rois"}
MAYBE_MASK_WORDS |= {"lesion", "lesions", "foreground", "fg", "classes", "classified"}
MASK_KINDS = {"color", "colors", "colour", "colours", "rgb", "viz", "vis", "instanceids", "ids"}
"""Words after one for masks at the end of the names of files: ``0_gtFine_color.png``."""
GENERIC_FOLDERS = _IMAGES | _PHOTOS | {"data", "dataset", "datasets", "upload", "uploads"}
"""Folders that say nothing about which images they hold, as annotation tools and exports have them."""
GENERIC_FOLDERS |= {"file", "files", "media", "default", "obj_train_data", ".."}

# in English, Spanish, French, German, Italian, Portuguese and Dutch, without accents, and in others
_TRAIN_NAMES = {"train", "training", "entrenamiento", "entrainement", "apprentissage"}
_TRAIN_NAMES |= {"addestramento", "allenamento", "treino", "treinamento", "trainen"}
_TRAIN_NAMES |= _plain(
    "训练", "训练集", "訓練", "訓練集", "学習", "学習用", "トレーニング", "학습", "훈련"
)
_TRAIN_NAMES |= _plain(
    "обучение", "обучающая", "тренировка", "trening", "uczenie", "träning", "eğitim"
)
_TRAIN_NAMES |= _plain(
    "trénink", "tanító", "koulutus", "opetus", "antrenare", "εκπαίδευση", "تدريب"
)
_VAL_NAMES = {"val", "valid", "validation", "validacion", "validierung", "validazione", "convalida"}
_VAL_NAMES |= {"validacao", "validatie"}
_VAL_NAMES |= _plain(
    "验证", "验证集", "驗證", "驗證集", "検証", "検証用", "검증", "проверка", "валидация"
)
_VAL_NAMES |= _plain("walidacja", "validering", "validace", "validointi", "doğrulama", "επικύρωση")
_TEST_NAMES = {
    "test",
    "testing",
    "prueba",
    "pruebas",
    "essai",
    "essais",
    "prova",
    "teste",
    "testes",
}
_TEST_NAMES |= _plain(
    "测试", "测试集", "測試", "測試集", "テスト", "テスト用", "테스트", "시험", "тест"
)
_TEST_NAMES |= _plain(
    "тестовая", "testowanie", "testy", "teszt", "testi", "testare", "δοκιμή", "اختبار"
)
_PART_NAMES = {"train": _TRAIN_NAMES, "val": _VAL_NAMES, "test": _TEST_NAMES}
PARTS = frozenset(_PART_NAMES)
"""The parts of a data set: train, val and test."""
_EVERY_PART_NAME = {name for names in _PART_NAMES.values() for name in names}
# parts of which it is open whether they are trained on or held out
_OTHER_PARTS = {"dev", "eval", "evaluation", "holdout", "heldout", "trainval", "trn", "tst", "vld"}
# what German and English write in one word: trainingsdaten, testset
_PART_ENDINGS = ("daten", "bilder", "fotos", "satz", "menge", "data", "set", "images")
_OTHER_PARTS |= {name + ending for name in _EVERY_PART_NAME for ending in _PART_ENDINGS}
_OTHER_PARTS |= {f"{name}s{ending}" for name in _EVERY_PART_NAME for ending in _PART_ENDINGS}
PART_WORDS = _OTHER_PARTS | {"unlabeled", "unlabelled", "fold", "folds", "split", "part", "cv"}
"""Words in the names of folders that are parts of a data set, not classes of it."""
PART_WORDS |= _EVERY_PART_NAME
PART_VERBS = {"lernen", "trainieren", "prufen", "pruefen", "testen", "validieren"}
"""Words that are parts where all folders are called like parts, and may be classes otherwise."""
# train_set, val-split
_AROUND_PARTS = {"set", "split", "part", "data", "dataset"}
# parts only where nothing is called otherwise: TE may be a place
_SHORT_PARTS = {"tr", "va", "te", "ts"}
OUTPUT_WORDS = {"prediction", "predictions", "pred", "preds", "overlay", "overlays", "output"}
"""Words in the names of folders that programs write, which are no class beside class folders."""
OUTPUT_WORDS |= {"outputs", "result", "results", "thumb", "thumbs", "thumbnail", "thumbnails"}
OUTPUT_WORDS |= {"heatmap", "heatmaps", "gradcam", "saliency", "predict", "predicted"}
DRAWN_WORDS = {"visualization", "visualizations", "visualisation", "visualisations"}
"""Words in the names of folders that programs write, whatever else is in them: ``ClassVisualization``."""
MADE_WORDS = (
    OUTPUT_WORDS
    | DRAWN_WORDS
    | {"boxes", "bboxes", "instance", "instances", "superpixel", "superpixels", "fg"}
)
"""Words at an end of the names of files that are made from an image of the same name, and are no mask of classes."""
MADE_WORDS |= {"foreground", "center", "centers", "centre", "centres", "edge", "edges"}
MADE_WORDS |= {"contour", "contours", "skeleton"}
SENSOR_WORDS = {"depth", "depths", "disparity", "lidar", "thermal", "tir", "lwir", "swir", "flir"}
"""Words in the names of folders and files that another sensor took of a scene."""
SENSOR_WORDS |= {"ir", "nir", "infrared", "rededge", "irrg"}
SENSOR_WORDS |= {"ndvi", "ndre", "cir", "dsm", "dtm", "dem", "tiefe", "tiefenbild", "tiefenbilder"}
SENSOR_WORDS |= _plain("红外", "热红外", "深度", "赤外", "熱赤外")
SENSOR_WORDS |= {"infrarot", "warmebild", "warmebilder", "waermebild", "waermebilder"}
CAMERA_WORDS = {"rgb", "color", "colour", "visible", "vis", "optical"}
"""Words in the names of folders and files of photos, where other sensors took pictures too."""
CAMERA_WORDS |= _plain("可见光", "可見光", "可視光")
CAMERA_WORDS |= {"farbe", "farbbild", "farbbilder", "sichtbar"}
STAIN_WORDS = {"dapi", "hoechst", "gfp", "yfp", "cfp", "rfp", "mcherry", "fitc", "tritc"}
"""Words in the names of folders and files of the channels of a microscope."""

COPY_WORDS = {"copy", "copies", "kopie", "copie", "copia", "backup", "backups", "bak"}
"""Words in the names of folders and files that are copies of others, as they are or changed."""
COPY_WORDS |= {
    "aug",
    "augs",
    "augmented",
    "augmentation",
    "augmentations",
    "duplicate",
    "duplicates",
}
COPY_WORDS |= {"副本", "副本文件", "コピー", "копия", "kopia", "kopi", "사본"}
COPY_WORDS |= _plain(*COPY_WORDS)
CHANGE_WORDS = {"aug", "augs", "augmented", "rotate", "rotated", "rotation", "gedreht", "mirror"}
"""Words in the names of files that are changed copies of others: ``0_aug_1.jpg``, ``0_flipLR.jpg``."""
CHANGE_WORDS |= {"mirrored", "gespiegelt", "flip", "flipped", "fliplr", "flipud", "hflip", "vflip"}
CHANGE_WORDS |= {"blur", "blurred", "bright", "brighter", "darker", "brightness", "contrast"}
CHANGE_WORDS |= {"noise", "noisy", "sharpened", "cropped", "resized", "rescaled"}
CHANGE_WORDS |= {"gamma", "clahe", "hsv", "jitter", "grayscale", "greyscale", "gaussian"}
CHANGE_WORDS |= {"saltpepper", "zoom", "zoomed", "shear", "sheared", "shifted", "translate"}
CHANGE_WORDS |= {"translated", "scaled", "downscaled", "elastic", "perspective", "mixup", "cutmix"}
CHANGE_WORDS |= {"cutout", "compressed"}
CHANGE_WORDS |= {"edited", "bearbeitet", "editado", "modifie"}
TURN_WORDS = {"rot", "deg", "degree", "degrees"}
"""Words of changed copies with a number alone: ``0_rot90.jpg``, ``0_90deg.jpg``; "rot" is "red" in German."""
BESIDE_CHANGES = {"new", "lr", "ud", "tb", "h", "v", "horizontal", "vertical", "horizontally"}
"""Words that say nothing of a change alone: ``0_new30degFlipLR.jpg``."""
BESIDE_CHANGES |= {"vertically", "left", "right", "up", "down", "cw", "ccw", "gaussian", "random"}
REJECT_WORDS = {
    "rejected",
    "rejects",
    "reject",
    "discarded",
    "excluded",
    "unused",
    "trash",
    "deleted",
}
"""Words in the names of folders in a class folder whose images may be none of the class."""
UNSORTED_WORDS = _plain(
    "未分类", "未分類", "корзина", "回收站", "unsortiert", "unsortierte", "papierkorb"
)
"""Words in the names of folders beside class folders that may be no class."""
UNSORTED_WORDS |= _plain("verworfen", "gelöscht", "geloescht", "corbeille", "papelera", "cestino")
UNSORTED_WORDS |= {"unsorted", "todo", "tmp", "temp", "unused", "trash", "discarded", "deleted"}
UNNAMED_FOLDERS = [{"new", "folder"}, {"untitled", "folder"}, {"neuer", "ordner"}]
"""The words of folders that systems make and nobody named."""
UNNAMED_FOLDERS += [{"nouveau", "dossier"}, {"nueva", "carpeta"}, {"nuova", "cartella"}]
UNNAMED_FOLDERS += [{"nova", "pasta"}, {"nieuwe", "map"}, {"nowy", "folder"}, {"yeni", "klasor"}]
UNNAMED_FOLDERS += [{"ny", "mapp"}, {"ny", "mappe"}, {"новая", "папка"}, {"新建文件夹"}]
UNNAMED_FOLDERS += [_plain("新しいフォルダー"), _plain("新規フォルダ"), _plain("새", "폴더")]
SOURCE_WORDS = {"day", "week", "month", "year", "season", "session", "visit", "camera", "cam"}
"""Words that say, with a number, when or where images were taken: ``day1``, ``camera_2``."""
SOURCE_WORDS |= {
    "drone",
    "flight",
    "plot",
    "site",
    "batch",
    "run",
    "scene",
    "sequence",
    "seq",
    "video",
}
SOURCE_WORDS |= {"clip", "patient", "subject", "field", "location", "parcel", "farm"}
SOURCE_WORDS |= {"tag", "woche", "monat", "jahr", "saison", "sitzung", "besuch", "termin"}
SOURCE_WORDS |= {"aufnahme", "kamera", "drohne", "flug", "befliegung", "parzelle", "feld", "schlag"}
SOURCE_WORDS |= {"standort", "flache", "flaeche", "szene", "sequenz", "proband"}
MONTHS = {"january", "february", "march", "april", "may", "june", "july", "august", "september"}
"""Months in English and German, without accents, and their short forms."""
MONTHS |= {"october", "november", "december", "januar", "februar", "marz", "maerz", "mai", "juni"}
MONTHS |= {"juli", "oktober", "dezember", "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep"}
MONTHS |= {"sept", "oct", "okt", "nov", "dec", "dez"}
SPLIT_FOLDERS = {"imagesets", "splits", "split", "sets", "lists"}
"""Folders of lists of the images of each part, such as ``ImageSets/Segmentation/train.txt`` of VOC."""

_FIRST_WORD = re.compile(r"([^\W\d_]+)(?:[_\-. ]|(?=\d))")  # of mask_0, mask0


def part_of(name: str) -> str | None:
    """Return the part of a data set that a folder is named after, in any case; None = it is not."""
    for part, names in _PART_NAMES.items():
        if plain_word(name) in names:
            return part
    return None


def part_names_among(names: Collection[str]) -> list[str]:
    """Return the names that say a part of a data set: ``train``, ``dev``, ``val_set``, but not ``test 2``."""
    part_names = [name for name in names if _says_part(name)]
    if not part_names and all(plain_word(name) in _SHORT_PARTS for name in names):
        return list(names)
    return part_names


def _says_part(name: str) -> bool:
    if any(character.isdigit() for character in name):
        return False
    said = words_of(name) - _AROUND_PARTS
    return bool(said) and said <= _EVERY_PART_NAME | _OTHER_PARTS


def says_train(name: str) -> bool:
    """Whether a name has a word for the part to train on: ``train2017``, ``Trainingsdaten``."""
    return any(word.startswith(tuple(_TRAIN_NAMES)) for word in words_of(name))


def words_of(name: str) -> set[str]:
    """Return the words of a name, without accents: ``SegmentationClass_png`` -> segmentation, class, png.

    Letters of other scripts that follow one another are one word.
    """
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[^\W\d_A-Za-z]+", _without_accents(name))
    return {word.lower() for word in words}


def first_word(name: str, words: Collection[str]) -> str:
    """Return the one of some words that a name begins with, and its separator: ``mask_`` of ``mask_0``.

    It is ``mask`` of ``mask0``, and empty if the name begins with none of the words.
    """
    match = _FIRST_WORD.match(name)
    if match is None or plain_word(match.group(1)) not in words:
        return ""
    return match.group()


def parts_in(names: Iterable[str]) -> set[str]:
    """Return the parts of a data set (train, val, test) that the words of some names state."""
    parts = set()
    for name in names:
        for word in words_of(name):
            part = part_of(word)
            if part is not None:
                parts.add(part)
    return parts


def words_without_parts(name: str) -> set[str]:
    """Return the words of a name that state no part of a data set."""
    return {word for word in words_of(name) if part_of(word) is None}
