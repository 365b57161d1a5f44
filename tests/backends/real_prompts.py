"""What a real model is asked to go on with: prose, code, tables, several languages and alphabets, one that is longer
than Gemma's sliding windows of 512 tokens."""

PROMPTS = {
    "tale": "Once upon a time",
    "code": "def merge(left, right):\n    result = []\n    while left and right:\n",
    "windows": "".join(f"{n} times {n} is {n * n}, and {n} more makes {n * n + n}.\n" for n in range(1, 26)),
    "fact": "The capital of France is",
    "one word": "Therefore",
    "recipe": "Pancakes\n\nIngredients:\n- 200 g flour\n- 2 eggs\n- 300 ml milk\n\nMethod:\n1.",
    "german": "Der Zug nach München hatte schon wieder Verspätung, und auf dem Bahnsteig",
    "french": "Il était une fois, dans un petit village au bord de la mer,",
    "spanish": "Las ventajas de la energía solar son las siguientes:",
    "chinese": "从前有一座山，山里有一座庙，",
    "russian": "Вчера вечером мы долго говорили о том, как",
    "hindi": "भारत की राजधानी",
    "json": '[{"name": "Ada", "born": 1815, "field": "mathematics"},\n {"name": "Alan", "born":',
    "sql": "SELECT customers.name, SUM(orders.total) FROM customers\nJOIN orders ON",
    "letter": "Dear Sir or Madam,\n\nI am writing to complain about the washing machine that I bought",
    "dialogue": "ANNA: Have you seen the keys?\nBEN: On the table, I think.\nANNA:",
    "science": "Photosynthesis is the process by which",
    "sum": "Question: A farmer has 17 sheep and buys 25 more. How many sheep has he now?\nAnswer:",
    "page": "<!DOCTYPE html>\n<html>\n<head>\n  <title>Weather</title>\n</head>\n<body>\n  <ul>\n    <li>",
    "signs": "🙂 ☕ 🌧️ means that",
}
