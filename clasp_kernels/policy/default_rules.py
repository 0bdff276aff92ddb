"""The default router's rules: phrases and weights, in the layout that ``Router`` takes.

Rough meaning of the weights: 4, the phrase decides the category ("how many"); 3, it usually does;
2, it is a hint; 1, it only breaks ties. Remaining ties go to the category listed first.
"""

from __future__ import annotations

from typing import Any


def _each(weight: float, phrases: str) -> dict[str, float]:
    """Return the comma-separated phrases, each with the same weight."""
    return {" ".join(phrase.split()): weight for phrase in phrases.split(",")}


_COUNTING = {
    # Outweighs other phrases in the question: "how many colours", "how many words".
    **_each(7, "how many"),
    **_each(4, "number of, total of, count, counting, how numerous"),
    **_each(3, "amount of, quantity of, exactly one, exactly two, exactly three, exactly four"),
    **_each(
        3,
        """
        are there two, are there three, are there four, are there five, are there six,
        are there only two, are there only three, are there more than, are there fewer than,
        are there less than, is there more than one, is there only one, is there just one,
        more than one, at least two, at least three, at most two
        """,
    ),
    **_each(2, "several, multiple, a single, tally"),
}

_OCR = {
    **_each(
        4,
        """
        read, reads, written, what number is on, what number is written, number on, numbers on,
        what time, what speed, speed limit, what team, which team, title of, name of the book,
        what word, which word, words on, word on, text on, text in, text, ocr, transcribe,
        spelled, spell, caption reads, license plate, licence plate, phone number, serial number,
        jersey number, what letter, which letter, letters on, letter on, letters are, letters,
        what letters, what date, what year, what price, how much does, how much is,
        what percentage, what brand, which brand, brand name, brand of, website, url, email,
        what is the name of this, name of the store, name of the shop, name of the company,
        name of the airline, name of the restaurant, name of the hotel, name of the street,
        name of the product, name of the team, name of the magazine, name of the newspaper,
        reference ocr
        """,
    ),
    **_each(
        3,
        """
        say, says, saying, said, printed, labeled, labelled, inscription, engraved, headline,
        street name, expiration date, alcohol content, bar chart, pie chart, line chart, chart,
        graph, table shows, axis, legend, x axis, y axis, receipt, invoice, total amount,
        document, logo, number, numbers, digits, digit, author, display show, displayed
        """,
    ),
    **_each(2, "sign, label, word, words, letter, menu, page, brand, price, clock show, watch"),
    **_each(1, "book, poster, screen, billboard, name, title, date, plate, scoreboard"),
}

_KNOWLEDGE = {
    **_each(
        4,
        """
        why, explain, reason, reasons, calculate, compute, infer, deduce, predict, how come,
        purpose of, what would happen, what will happen, what might happen, what could happen,
        what happened before, what happens if, what is the capital of, capital of,
        arithmetic question, in what year was, who invented, who wrote, who painted,
        which country is, what country is, based on the, correct answer, solve, conclude,
        conclusion, evidence, hypothesis, is it legal, what can you infer, can be inferred,
        translated into, translate, translation, is it appropriate to, python code, code,
        famous for, known for
        """,
    ),
    **_each(
        3,
        """
        used for, what can this be used, function of, which property, properties, cause, caused,
        causes, most likely, likely to, how does this work, how is this made, scientific name,
        species, breed, calories, nutrients, vitamin, history, historical, invented, directed by,
        which of these states, which of the following, which state, which ocean, which continent,
        artwork, landmark, temperature is higher, magnetic force, kinetic energy, chemical,
        solution, organism, adaptation, food chain, food web, ecosystem, genotype, offspring,
        allele, experiment, thermal energy, trait, fossil, rock, planet, colony, how can,
        how could, how might, should, meaning of, symbolize, symbolise, advice, recipe,
        difference between, advantage, what kind of person, relationship between
        """,
    ),
    # Questions about recognising landmarks, films or people.
    **_each(3, "is this an image of, is this a picture of, is this a photo of"),
    **_each(
        3,
        """
        how does, how do, energy, particle, particles, probability, statement, population,
        climate, adapted, adaptations, predator, prey, producer, consumer, professional
        """,
    ),
    **_each(2, "because, suggest, imply, implies, would, might, famous, popular, who is this"),
    **_each(1, "if, could, probably, country, invention, event"),
}

_SPATIAL = {
    **_each(6, "^where, which side, what side, on which side, which corner, what corner"),
    **_each(
        4,
        """
        where, position of, location of, located, left of,
        right of, left side of, right side of, relative to, bounding box, coordinates,
        which direction, what direction, locate, point to, in which part, which part of the,
        how far, closest to, nearest to, farthest from
        """,
    ),
    **_each(
        3,
        """
        in front of, behind, above, below, underneath, under, beneath, next to, beside, between,
        on top of, beyond, adjacent to, opposite, to the left, to the right, on the left,
        on the right, on the left side, on the right side, left or right, right or left,
        at the top, at the bottom, upper, lower, top of, bottom of, on top or, closer, farther,
        nearer, nearest, closest, facing, surrounding, surrounded by, hanging from, hanging over
        """,
    ),
    **_each(
        2,
        """
        left, right, near, inside, outside, around, over, top, bottom, corner, foreground,
        background, center of, centre of, middle of, standing on, sitting on, on the table,
        on the wall, on the ground, on what, in what, ^what is on the, ^what is in the,
        ^who is on the, ^who is in the
        """,
    ),
    **_each(1, "beneath it, side, front, edge, direction, spot"),
}

_SCENE = {
    **_each(
        4,
        """
        describe, caption, description, summarize, summarise, summary, what is happening,
        what is going on, what is shown, what is this a picture of, what does the image show,
        what does the picture show, what does this image show, tell me about, tell me a bit about,
        what kind of scene, what type of scene, what scene, which scene, which room, what room,
        what type of room, what kind of room, what place is this, which place is this,
        what place is it, which place is it, what time of day, what is in the picture,
        what is in the image, explain what, explain the image, explain the picture,
        explain the scene, what kind of place, what type of place, overall, indoors or outdoors,
        indoors, outdoors, indoor, outdoor, mood, atmosphere, setting, weather, time of day,
        season, place of, daytime, nighttime, night time, day time, what event, what occasion
        """,
    ),
    **_each(
        3,
        """
        scene, environment, what do you see, what can you see, in a few words, in one sentence,
        in detail, day or night, what season, sunny, cloudy, rainy, raining, snowing, overcast,
        what sport, which sport, what game is being played, taken at night, taken during the day,
        landscape, scenery, story, theme, place is this, place is it, kind of area, photo taken,
        picture taken
        """,
    ),
    **_each(4, "^a photo of, ^a picture of, ^an image of"),  # a caption to be completed
    **_each(
        2,
        """
        kitchen, bedroom, bathroom, living room, classroom, office, restaurant, hospital, airport,
        station, museum, library, supermarket, stadium, street, park, beach, forest, desert,
        mountain, city, countryside, village, farm, wedding, concert, parade, picnic, festival,
        meeting, ceremony, celebration
        """,
    ),
    **_each(2, "activity, kitchen or, bedroom or, urban, rural, night, morning, evening, party"),
    **_each(1, "look like in, weather like, feel, vibe, style"),
}

_ATTRIBUTE = {
    **_each(
        4,
        """
        what color, what colour, which color, which colour, color of, colour of, colors, colours,
        what shape, which shape, shape of, made of, made from, made out of, what material,
        which material, what pattern, same color, same colour, what size, how big, how tall,
        how large, how old
        """,
    ),
    **_each(
        3,
        """
        color, colour, shape, material, pattern, what kind of, what type of, what sort of,
        which kind of, which type of, wearing, what animal, which animal, what is this,
        what is that, what are these, what are those, what is it, what fruit, what vegetable,
        what vehicle, what object, what item, what food, what gender, is there a, is there an,
        is there any, are there any, are there some, do you see, can you see, does it look,
        what is the man, what is the woman, what is the person, what is the boy, what is the girl,
        holding, identify, name the, is this an image of a, is this a picture of a,
        is this a photo of a, does the image contain, does the picture contain, exist, exists,
        present, visible, appear, appears, contain, open or, closed, empty or, on or off, wet or,
        dirty
        """,
    ),
    # A colour or a state as the last word is what the question asks for. Words that are also
    # things are left out: "where is the square", "where is the orange".
    **_each(
        4,
        """
        red$, green$, blue$, yellow$, black$, white$, brown$, purple$, pink$, gray$,
        grey$, open$, closed$, empty$, full$, clean$, dirty$, broken$, wet$, dry$, ripe$, old$,
        young$, wooden$, striped$, round$, smiling$, asleep$, large$, small$,
        tall$, short$
        """,
    ),
    **_each(
        2,
        """
        red, green, blue, yellow, black, white, brown, orange, purple, pink, gray, grey, large,
        small, big, tall, short, long, round, square, striped, wooden, metal, plastic, is there,
        are there, which animal is, who is, which one, what is the, what are the, kind of,
        type of, open, smiling, broken, clean, old, young
        """,
    ),
    **_each(1, "is, are, does, do, what, who, which, has, have, can"),
}

DEFAULT_RULES: dict[str, Any] = {
    "format": 1,
    "fallback": "general",
    "categories": {
        "counting": _COUNTING,
        "ocr": _OCR,
        "knowledge": _KNOWLEDGE,
        "spatial": _SPATIAL,
        "scene": _SCENE,
        "attribute": _ATTRIBUTE,
    },
    "neutral": [
        # Instructions on the form of the answer.
        "single word or phrase",
        "one word",
        "single word",
        "a word or phrase",
        "few words",
        "answer with",
        "option is letter",
        "letter from the given choices",
        "please answer yes or no",
        "answer yes or no",
        "given choices",
        "short answer",
        # Negations.
        "not count",
        "not counting",
        "without counting",
        "not read",
        "without reading",
        "not describe",
        "without describing",
        "not explain",
        "without explaining",
        # References to the picture itself.
        "in the image",
        "in this image",
        "in the picture",
        "in this picture",
        "in the photo",
        "in this photo",
        "of the image",
        "of the picture",
        "all right",
        "right now",
        "left over",
    ],
}
