"""General instructions, written for SelfAug: what people ask a model every day, and nothing from a benchmark.

One instruction per line. A line that starts with # names the group that follows. Every n-th instruction covers each
group.
"""

from __future__ import annotations

_BASIC = """
# explain
Explain to a ten-year-old why the sky is blue.
What is the difference between weather and climate?
How does a refrigerator keep food cold?
Describe how bread rises when it is baked.
Why do leaves change colour in autumn?
Explain what inflation means and how it affects savings.
What happens in the body when we sleep?
How do vaccines protect people from disease?
Explain the difference between a virus and a bacterium.
Why is the sea salty?
What does a compiler do?
How does a bicycle stay upright while it is moving?
# write
Write a short poem about a lighthouse in winter.
Write a polite email asking a colleague to move a meeting to Thursday.
Write the opening paragraph of a detective story set in a library.
Compose a birthday message for a friend who loves hiking.
Write a product description for a wooden desk lamp.
Write a short speech to thank the volunteers of a food bank.
Describe a busy market in the morning, using all five senses.
Write a dialogue between a cat and a dog who share a sofa.
Write a letter to your future self, ten years from now.
Write a four-line rhyme about a train that is late.
Write a short fable that ends with a lesson about patience.
Write a review of an imaginary restaurant that only serves soup.
# list
List five ways to save water at home.
Give three tips for learning a new language.
Name six animals that live in the desert.
List the ingredients for a simple vegetable soup.
Suggest four titles for a book about the history of maps.
What are some good questions to ask in a job interview?
List the steps to change a flat tyre.
Give five ideas for a rainy afternoon with children.
What should I pack for a weekend of camping?
Name three advantages and three disadvantages of working from home.
List four habits that help people sleep better.
Suggest five names for a small coffee shop.
# reason
If a train travels 60 kilometres in 45 minutes, what is its average speed in kilometres per hour?
Anna is older than Ben, and Ben is older than Carla. Who is the youngest? Explain.
A shirt costs 40 dollars and is reduced by 25 percent. What is the new price? Show the steps.
I have three red and two blue socks in a drawer. How many must I take out to be sure of a pair?
Is it possible for a month to have five Sundays? Explain why or why not.
What comes next in the sequence 2, 6, 12, 20, 30, and why?
A farmer has 17 sheep and all but 9 run away. How many are left?
How many minutes are there in a week? Show your calculation.
If all roses are flowers and some flowers fade quickly, must some roses fade quickly?
Which is heavier, a kilogram of feathers or a kilogram of iron? Explain your answer.
Split 84 apples among 7 baskets so that each holds the same number, and explain how.
A recipe for 4 people needs 300 grams of rice. How much is needed for 10 people?
# code
Write a Python function that returns the largest number in a list.
Write a Python function that checks whether a word is a palindrome.
Explain what a for loop does, with an example.
Write an SQL query that counts the customers of each country.
What is the difference between a list and a tuple in Python?
Write a regular expression that matches a date such as 2024-03-15, and explain it.
Write a shell command that counts the lines of all text files in a folder.
Write a JavaScript function that adds up the numbers in an array.
Explain what recursion is and give a small example in Python.
What does it mean when a program has a memory leak?
Write an HTML page with a heading and a list of three links.
How would you test a function that sorts numbers?
# format
Answer in exactly three bullet points: why should people exercise?
Write a haiku about rain.
Give me a JSON object with the name, age and city of an invented person.
Describe the moon in one sentence of at most fifteen words.
Write a two-column table of five countries and their capitals.
Answer only in capital letters: what do bees make?
Write a paragraph about trees that does not use the letter z.
Give a numbered list of the seasons, with one sentence on each.
Begin your answer with the word "Certainly" and explain how to boil an egg.
Write a headline and a subheading for an article about night buses.
Summarise the story of Cinderella in two sentences.
Write three questions, without answers, about the history of Rome.
# chat
I feel nervous before my first day at a new job. What can I do?
Can you recommend a hobby for someone who likes to be outdoors?
My neighbour plays loud music at night. How should I talk to him?
What would you cook for a friend who does not eat meat?
I want to read more books this year. How do I start?
Tell me something surprising about octopuses.
Which would you rather visit, the mountains or the sea, and why?
I forgot my friend's birthday. How can I make up for it?
Help me plan a small garden on a balcony.
What makes a good teacher?
How can I keep my houseplants alive while I am on holiday?
My computer is slow. What should I check first?
# rewrite
Rewrite this sentence in a formal tone: "Hey, can you send me that file soon?"
Make this sentence shorter: "Due to the fact that it was raining, we made the decision to stay inside."
Correct the mistakes: "She dont like apples but he like it very much."
Change this sentence to the past tense: "The children play in the garden and sing."
Translate into French: "Good morning, how are you today?"
Turn this into a question: "The museum opens at nine."
Rewrite in simple words: "The legislation was promulgated to ameliorate urban congestion."
Give three synonyms for "happy" and use each in a sentence.
Combine into one sentence: "The dog barked. The postman ran. The gate was open."
Rewrite as a newspaper headline: "A man found a gold coin while digging in his garden."
Make this request more polite: "Give me the report now."
Explain the saying "a stitch in time saves nine" in your own words.
"""

_FURTHER = """
# format, harder
Answer with a single word: what is the capital of Norway?
Describe a thunderstorm in exactly four sentences.
Name three fruits, separated by semicolons and nothing else.
Explain what a comet is without using the word "ice".
Write the days of the week in reverse order, one per line.
Give the ingredients of a pancake as a JSON list of strings.
Write a limerick about a penguin that is afraid of water.
Answer in the form of a question: what is photosynthesis?
List five rivers, each with the continent in brackets.
Write a sentence in which every word starts with the letter s.
Write a YAML file with the opening hours of a small library.
Explain gravity in two paragraphs of three sentences each.
Write a short advertisement that contains the words "breeze", "copper" and "Tuesday".
Give the pros and cons of electric cars under two headings in Markdown.
End your answer with the words "and that is all": how does a zip fastener work?
Reply with an e-mail that has a subject line, a greeting and a signature: you will be late tomorrow.
# reason, harder
Tom has twice as many marbles as Lea. Together they have 36. How many does each of them have?
A clock shows a quarter past three. What is the angle between its hands?
Which number is missing: 1, 1, 2, 3, 5, 8, ?, 21? Give the rule.
Three people shake hands with one another once. How many handshakes are there, and how many with ten people?
If it rains, the street gets wet. The street is wet. Must it have rained?
A snail climbs 3 metres by day and slides back 2 metres by night. When does it reach the top of a 10 metre wall?
Convert 5 kilometres per hour into metres per second and show the calculation.
I paid 63 euros including 5 percent tax. What was the price before tax?
You have a 3 litre jug and a 5 litre jug. How do you measure 4 litres?
What day of the week is it 100 days after a Monday?
Estimate how many piano tuners work in a city of two million people. State your assumptions.
A box holds 4 red and 6 green balls. What is the chance of drawing two red ones in a row?
Order these from smallest to largest and say why: 0.5, 3/8, 60 percent, 2/3.
Is the following argument sound? "All birds lay eggs. A platypus lays eggs. So a platypus is a bird."
# code, harder
Write a Python function that merges two sorted lists without using sort.
Find the mistake: "for i in range(10) print(i)".
Write a Bash script that renames all .jpeg files in a folder to .jpg.
Explain the difference between == and === in JavaScript.
Write an SQL query that returns the second highest salary from a table of employees.
Write a unit test for a function that converts Celsius to Fahrenheit.
What is a hash table, and when is it slow?
Write a C function that reverses a string in place.
Write CSS that centres a box on the page, horizontally and vertically.
Explain what a race condition is with an everyday example.
Rewrite this with a list comprehension: "r = []; for x in xs: if x > 0: r.append(x * x)".
What does the Git command rebase do, and when should it not be used?
Write a Python class for a bank account with deposit, withdraw and balance.
Write a function in any language that counts the vowels in a text.
# explain, further
Explain how a microwave oven heats food.
What is the difference between a democracy and a republic?
Why do we have leap years?
How does a search engine decide which pages to show first?
Explain compound interest to a teenager.
What is an ecosystem? Give an example.
How do noise-cancelling headphones work?
Why do cats purr?
What caused the First World War? Answer in a short paragraph.
How does a heat pump get warmth out of cold air?
Explain what a metaphor is and give two examples.
What is the difference between speed and velocity?
How are mountains formed?
What does a central bank do?
# write, further
Write the first paragraph of a science fiction novel that begins on a ferry.
Write a wedding toast by the bride's older brother, about one minute long.
Write a complaint to a hotel about a broken air conditioner, firm but friendly.
Write a cover letter for a job in a bookshop.
Write a short dialogue in which two friends disagree about pineapple on pizza.
Write a poem of eight lines about an empty railway station.
Write a social media post that announces a charity run.
Write instructions for a board game that you invent, for two players.
Write a diary entry of an astronaut on her first day back on Earth.
Write a short obituary for an old, much loved oak tree.
Write a thank-you card to a neighbour who watered the plants.
Describe your favourite imaginary city without naming it.
# list, further
List seven words that rhyme with "light".
Give five examples of renewable energy.
Name four inventions that changed how people travel.
Suggest a weekly dinner plan for a family of four.
List the planets of the solar system with one fact each.
What should a first-aid kit contain?
Give six ideas for a birthday present under twenty dollars.
List three common mistakes that beginners make in chess.
Name five famous painters and one work of each.
List the steps to make a cup of tea properly.
Give ten words that describe the sea.
What documents do I need to rent a flat?
# everyday
How do I get a coffee stain out of a white shirt?
What is a healthy breakfast for a busy morning?
How long should I boil potatoes?
My flight was cancelled. What are my options?
How can I save money on my electricity bill?
What is a good way to learn the names of new colleagues?
I have eggs, spinach and cheese. What can I cook?
How do I write a strong password that I can remember?
What should I do if I lose my wallet abroad?
How often should I water a cactus?
Plan a day in a city that I visit for the first time, on foot.
How do I fold a fitted sheet?
What can I do with old jeans?
How do I prepare for a visit to the dentist if I am afraid of it?
# chat, further
Hello! Who are you, and what can you help me with?
I cannot sleep. Can you tell me something calming?
Tell me a joke about a mathematician.
What would a conversation between the sun and the moon sound like?
I have just finished a marathon. What should I say when people ask how it was?
Do you think that robots should have rights?
My daughter asks where the stars go during the day. What do I tell her?
I want to make peace with an old friend. How do I begin the message?
Give me a riddle, but do not tell me the answer.
If you could add one day to the week, what would it be for?
# rewrite and extract
Summarise in one sentence: "The bridge was closed in March. Boats took its place. In June it opened again."
Translate into Spanish: "Where is the nearest pharmacy?"
Extract the names and the amounts: "Ravi owes Mia 12 euros, and Mia owes Chen 7."
Turn these notes into a sentence: "meeting Friday 10 am, room 4, bring laptops".
Is this review positive or negative, and why? "The soup was cold, but the waiter could not have been kinder."
Put these words into alphabetical order: pear, apple, quince, fig, cherry.
Rewrite in the active voice: "The window was broken by the ball."
Replace every number with a word: "I have 3 cats, 2 dogs and 1 parrot."
Write the opposite of each word: early, generous, deep, ancient.
Split this into three short sentences: "Although it was late, she went into the shop because she needed a gift."
Classify each as animal, plant or mineral: quartz, moss, otter, salt, fern.
Make a table from this: "Ana is 31 and lives in Lisbon; Bo is 27 and lives in Oslo."
"""


def _listed(text: str) -> tuple[str, ...]:
    return tuple(line for line in text.splitlines() if line and not line.startswith("#"))


BASIC = _listed(_BASIC)
INSTRUCTIONS = (*BASIC, *_listed(_FURTHER))
