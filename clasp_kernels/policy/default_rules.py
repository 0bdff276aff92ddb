"""The default router's rules: patterns of words and weights, in the layout that ``Router`` takes.

Rough meaning of the weights: from 12 on, the pattern decides the category even if the question
names other things; 7 to 11, it decides; 4 to 6, it usually does; 2 to 3, it is a hint; 1, it only
breaks ties. Remaining ties go to the category listed first.
"""

from __future__ import annotations

from typing import Any


def _each(weight: float, patterns: str) -> dict[str, float]:
    """Return the comma-separated patterns, each with the same weight."""
    return dict.fromkeys(_list(patterns), weight)


def _list(patterns: str) -> list[str]:
    """Return the comma-separated patterns."""
    return [" ".join(pattern.split()) for pattern in patterns.split(",")]


def _words(words: str) -> list[str]:
    """Return the words of a class."""
    return words.split()


_CLASSES = {
    "function": _words(
        """
        a an the this that these those my your his her its our their is are was were be been being
        am do does did has have had having can could would should will shall may might must of in
        on at by for from to with without into onto off about as than like and or but nor if
        whether while because so what which who whom whose where when why how it he she they i you
        we me him them us there here not no any some each every both either neither all most more
        less under over above below behind between beside near inside outside around across along
        against through towards toward until during before after then else please just
        """
    ),
    "be": _words(
        """
        is are was were be been being am
        """
    ),
    "do": _words(
        """
        do does did
        """
    ),
    "have": _words(
        """
        has have had
        """
    ),
    "which": _words(
        """
        what which
        """
    ),
    "det": _words(
        """
        a an the this that these those my your his her its our their any some
        """
    ),
    "the": _words(
        """
        the this that these those my your his her its our their
        """
    ),
    "this": _words(
        """
        this these that those such
        """
    ),
    "it": _words(
        """
        it this that he she they these those there
        """
    ),
    "kind": _words(
        """
        kind kinds type types sort sorts kinda sorta category class variety
        """
    ),
    "picture": _words(
        """
        image images picture pictures photo photos photograph photographs pic pics shot shots
        snapshot snapshots painting paintings drawing drawings illustration illustrations artwork
        artworks scene scenes snap snaps sketch sketches view views
        """
    ),
    "number": _words(
        """
        two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
        sixteen seventeen eighteen nineteen twenty thirty forty fifty hundred dozen couple pair
        zero
        """
    ),
    "person": _words(
        """
        person persons man mans woman womans boy boys girl girls guy guys lady ladies kid kids
        child childs player players worker workers driver drivers rider riders chef chefs waiter
        waiters dancer dancers singer singers baby babies toddler toddlers cyclist cyclists skier
        skiers surfer surfers student students teacher teachers nurse nurses doctor doctors bride
        brides groom grooms athlete athletes he she they men women people children someone anyone
        everyone him her them
        """
    ),
    "whole": _words(
        """
        weather weathers season seasons mood moods atmosphere atmospheres setting settings event
        events occasion occasions activity activities scenario scenarios environment environments
        venue venues vibe vibes ambience ambiences ambiance ambiances genre genres scenery
        sceneries landscape landscapes surrounding surroundings gathering gatherings celebration
        celebrations festivity festivities ceremony ceremonies backdrop backdrops climate climates
        locale locales occurrence occurrences feeling feelings impression impressions storyline
        storylines
        """
    ),
    "place": _words(
        """
        kitchen kitchens bedroom bedrooms bathroom bathrooms classroom classrooms office offices
        restaurant restaurants hospital hospitals airport airports station stations museum museums
        library libraries supermarket supermarkets stadium stadiums street streets park parks
        beach beaches forest forests desert deserts mountain mountains city cities town towns
        countryside countrysides village villages farm farms garden gardens harbour harbours
        harbor harbors workshop workshops factory factories warehouse warehouses cafe cafes bar
        bars pub pubs shop shops store stores market markets bakery bakeries gym gyms garage
        garages church churches temple temples mosque mosques cathedral cathedrals school schools
        laboratory laboratories lab labs playground playgrounds zoo zoos aquarium aquariums
        greenhouse greenhouses orchard orchards vineyard vineyards jungle jungles meadow meadows
        field fields valley valleys canyon canyons lake lakes river rivers ocean oceans sea seas
        seaside seasides coast coasts island islands highway highways motorway motorways road
        roads alley alleys square squares plaza plazas courtyard courtyards balcony balconies
        rooftop rooftops theatre theatres theater theaters cinema cinemas hotel hotels lobby
        lobbies hallway hallways corridor corridors basement basements attic attics nursery
        nurseries studio studios salon salons barbershop barbershops casino casinos arena arenas
        court courts pool pools rink rinks track tracks slope slopes resort resorts campsite
        campsites cemetery cemeteries graveyard graveyards castle castles palace palaces
        construction constructions quarry quarries mine mines port ports dock docks marina marinas
        pier piers bridge bridges tunnel tunnels subway subways suburb suburbs slum slums downtown
        downtowns backyard backyards patio patios terrace terraces room rooms dormitory
        dormitories bookstore bookstores pharmacy pharmacies laundry laundries laundromat
        laundromats mall malls bazaar bazaars canteen canteens cafeteria cafeterias diner diners
        nightclub nightclubs club clubs stage stages auditorium auditoriums gallery galleries barn
        barns stable stables swamp swamps tundra tundras savanna savannas savannah savannahs plain
        plains rainforest rainforests woodland woodlands wilderness wildernesses clinic clinics
        ward wards courtroom courtrooms prison prisons cell cells spaceship spaceships cockpit
        cockpits cabin cabins operating operatings terminal terminals
        hall halls ballroom ballrooms chapel chapels
        """
    ),
    "event": _words(
        """
        wedding weddings concert concerts parade parades picnic picnics festival festivals meeting
        meetings ceremony ceremonies celebration celebrations party parties funeral funerals
        graduation graduations protest protests demonstration demonstrations march marches rally
        rallies conference conferences lecture lectures race races marathon marathons match
        matches tournament tournaments carnival carnivals birthday birthdays barbecue barbecues
        bbq bbqs banquet banquets dinner dinners christening christenings baptism baptisms auction
        auctions interview interviews exhibition exhibitions fair fairs performance performances
        rehearsal rehearsals recital recitals reunion reunions procession processions riot riots
        strike strikes storm storms flood floods earthquake earthquakes wildfire wildfires
        eruption eruptions halloween halloweens christmas christmases easter easters thanksgiving
        thanksgivings
        """
    ),
    "weather": _words(
        """
        sunny cloudy rainy raining snowing snowy overcast foggy misty windy stormy hazy drizzling
        sunset sunrise dawn dusk noon midday midnight night nighttime daytime daylight twilight
        morning evening afternoon summer winter autumn rain snow fog indoors outdoors indoor
        outdoor urban rural sunshine thunderstorm
        """
    ),
    "entry": _words(
        """
        date dates price prices cost costs subtotal subtotals tax taxes balance balances fee fees
        fare fares percentage percentages percent percents share shares value values score scores
        speed speeds temperature temperatures reading readings address addresses website websites
        url urls email emails phone phones telephone telephones headline headlines heading
        headings subheading subheadings slogan slogans motto mottos brand brands logo logos
        caption captions title titles subtitle subtitles author authors publisher publishers
        editor editors sender senders recipient recipients addressee addressees sponsor sponsors
        manufacturer manufacturers label labels expiry expiries expiration expirations deadline
        deadlines salary salaries revenue revenues profit profits income incomes expenditure
        expenditures budget budgets sale sales discount discounts rate rates interest interests
        dosage dosages dose doses version versions serial serials barcode barcodes code codes
        password passwords username usernames hashtag hashtags channel channels platform platforms
        flight flights departure departures arrival arrivals destination destinations field fields
        entry entries footnote footnotes footer footers header headers paragraph paragraphs
        signature signatures designation designations postcode postcodes zip zips invoice invoices
        reference references registration registrations licence licences license licenses jersey
        jerseys percentile percentiles gpa gpas grade grades isbn isbns edition editions chapter
        chapters page pages volume volumes duration durations year years month months weekday
        weekdays digit digits inscription inscriptions notification notifications surname surnames
        nickname nicknames initial initials abbreviation abbreviations acronym acronyms spelling
        spellings axis axises legend legends tick ticks unit units currency currencies
        denomination denominations figure figures statistic statistics population populations
        unemployment unemployments gdp gdps median medians average averages mean means maximum
        maximums minimum minimums peak peaks range ranges turnover turnovers output outputs
        emission emissions vote votes ranking rankings rank ranks bill bills receipt receipts
        kilocalorie kilocalories sodium sodiums deposit deposits rent rents premium premiums
        allowance allowances vat vats tip tips warranty warranties pulse pulses pressure pressures
        voltage voltages frequency frequencies mileage mileages odometer odometers altitude
        altitudes cholesterol mph wifi kcal kwh
        nationality nationalities forename forenames
        inflation exports imports debt deficit spending attendance rainfall enrolment enrollment
        wage wages
        id ids
        """
    ),
    "medium": _words(
        """
        sign signs label labels poster posters page pages document documents letter letters form
        forms receipt receipts bill bills invoice invoices ticket tickets menu menus banner banners
        board boards screen screens display displays chart charts graph graphs table tables plot
        plots newspaper newspapers magazine magazines book books cover covers note notes memo memos
        contract contracts certificate certificates passport passports card cards envelope
        envelopes package packages packaging packagings sticker stickers tag tags plaque plaques
        billboard billboards whiteboard whiteboards blackboard blackboards chalkboard chalkboards
        slide slides screenshot screenshots app apps website websites spreadsheet spreadsheets
        calendar calendars timetable timetables schedule schedules clock clocks watch watches gauge
        gauges meter meters dial dials thermometer thermometers odometer odometers speedometer
        speedometers logo logos tattoo tattoos brochure brochures leaflet leaflets flyer flyers
        pamphlet pamphlets cheque cheques check checks statement statements report reports article
        articles paragraph paragraphs headline headlines diploma diplomas prescription
        prescriptions scoreboard scoreboards keyboard keyboards signpost signposts nameplate
        nameplates nametag nametags badge badges barcode barcodes histogram histograms infographic
        infographics legend legends axis axises diagram diagrams map maps dashboard dashboards
        subtitle subtitles comic comics speech speeches bubble bubbles tombstone tombstones
        gravestone gravestones stamp stamps coin coins banknote banknotes voucher vouchers coupon
        coupons manual manuals agenda agendas minutes minuteses footnote footnotes column columns
        row rows cell cells thermostat thermostats altimeter altimeters barometer barometers
        signboard signboards noticeboard noticeboards postcard postcards telegram telegrams
        correspondence letterhead ledger ledgers wristband wristbands packet packets sachet sachets
        departures paperback paperbacks bookmark popup popups
        circular circulars memorandum memorandums bulletin bulletins gazette questionnaire
        questionnaires transcript transcripts handout handouts worksheet worksheets syllabus
        permit permits notice notices placard placards caption captions inscription inscriptions
        survey surveys poll polls census
        """
    ),
    "written": _words(
        """
        written printed painted engraved inscribed stamped listed stated displayed mentioned noted
        recorded reported indicated entered typed handwritten scribbled jotted chalked labelled
        advertised announced quoted spelled spelt carved embroidered scrawled given specified
        credited cited plotted titled dated priced charged billed scheduled
        """
    ),
    "unit": _words(
        """
        kilometres kilometers km miles metres meters degrees percent percentage dollars euros
        pounds cents bucks grams grammes kg kilos kilograms mg ml litres liters tonnes tons units
        votes points minutes seconds hours days nights visitors respondents employees subscribers
        followers likes views comments shares medals goals copies barrels megawatts kwh watts
        volts inhabitants residents tourists households cases deaths births patients jobs users
        downloads stars milligrams ounces oz feet inches mph years months weeks servings million
        billion thousand credits unread notifications messages
        """
    ),
    "plotted": _words(
        """
        country countries year years month months quarter quarters week weeks day days decade
        decades company companies department departments region regions sector sectors group
        groups segment segments bar bars slice slices series serieses category categories brand
        brands team teams candidate candidates party parties product products item items city
        cities state states age ages district districts industry industries subject subjects
        player players student students employee employees continent continents nation nations
        weekday weekdays supplier suppliers branch branches course courses fuel fuels
        """
    ),
    "extreme": _words(
        """
        highest lowest most least largest smallest biggest greatest fewest maximum minimum peak
        top best worst steepest longest shortest cheapest dearest second third fastest slowest
        higher lower more fewer less greater
        """
    ),
    "look": _words(
        """
        colour colours shape shapes material materials pattern patterns texture textures size
        sizes expression expressions hairstyle hairstyles hair hairs outfit outfits clothing
        clothings clothes clotheses fabric fabrics gender genders pose poses posture postures
        condition conditions state states design designs footwear footwears finish finishes shade
        shades hue hues emotion emotions attire attires garment garments garb garbs costume
        costumes dress dresses shirt shirts hat hats coat coats jacket jackets shoe shoes
        """
    ),
    "colour": _words(
        """
        red green blue yellow black white brown orange purple pink grey golden gold silver beige
        turquoise violet maroon navy cream crimson teal
        """
    ),
    "state": _words(
        """
        open closed shut empty full clean dirty broken wet dry ripe unripe old young wooden
        striped round smiling asleep awake large small tall short long big tiny huge thick thin
        fat skinny heavy bald bearded barefoot blonde lit unlit rusty shiny dull cracked intact
        torn folded crumpled sliced whole cooked raw burnt burning melted frozen transparent
        opaque soft hard smooth rough plain patterned spotted checkered plastic metal metallic
        leather glass damaged dented chipped scratched worn new modern antique bright dark happy
        sad angry surprised scared tired bored crying laughing frowning standing sitting lying
        running walking sleeping eating jumping swimming flying moving parked male female adult
        alive dead blurry sharp curly straight square circular rectangular triangular oval locked
        loose tied untied painted carved woven inflated deflated crowded visible blooming pregnant
        injured naked fresh rotten mouldy moldy switched steel stone concrete wool cotton silk
        denim paved fluffy furry hairy shaved matching identical different similar same
        blindfolded muddy bent flat stained peeling faded inflatable leafy bare
        """
    ),
    "thing": _words(
        """
        animal animals vehicle vehicles fruit fruits vegetable vegetables object objects item
        items food foods bird birds insect insects bug bugs flower flowers plant plants tree trees
        instrument instruments tool tools furniture furnitures device devices appliance appliances
        drink drinks beverage beverages toy toys dish dishes car cars boat boats ship ships
        aircraft aircrafts plane planes fish fishes creature creatures mammal mammals snake snakes
        dog dogs cat cats cheese cheeses bread breads cake cakes meat meats pet pets utensil
        utensils gadget gadgets accessory accessories topping toppings weapon weapons machine
        machines dessert desserts sauce sauces shellfish shellfishes mushroom mushrooms fungus
        funguses spider spiders butterfly butterflies breed breeds hairdo hairdos sheep deer
        cattle jewellery jewelry
        """
    ),
    "hold": _words(
        """
        wearing holding carrying doing eating drinking riding using pulling pushing throwing
        cooking pouring reaching touching grabbing playing painting cutting chewing dressed
        dragging lifting hiding catching kicking selling feeding petting walking flying making
        preparing wrapped covered decorated filled shaped coloured stuffed wear wears hold holds
        carry carries
        """
    ),
    "prep": _words(
        """
        behind between beside under underneath beneath below above near inside outside around atop
        across along against among amongst amid within opposite beyond over left right next
        adjacent alongside by on upon in off closest nearest farthest furthest closer nearer
        facing surrounding touching
        """
    ),
    "placed": _words(
        """
        standing sitting lying located positioned placed situated hanging leaning resting parked
        seated mounted found visible kept stored hidden hiding perched attached floating stacked
        tucked seen lurking growing sits stands lies hangs lurks rests sat stuck
        """
    ),
    "fact": _words(
        """
        origin origins purpose purposes function functions usage usages habitat habitats diet
        diets lifespan lifespans ingredient ingredients nutrient nutrients vitamin vitamins
        protein proteins health healths benefit benefits disease diseases illness illnesses
        symptom symptoms treatment treatments cure cures remedy remedies cause causes effect
        effects reason reasons law laws force forces principle principles theory theories
        hypothesis hypothesises formula formulas equation equations history histories century
        centuries era eras culture cultures tradition traditions religion religions meaning
        meanings symbolism symbolisms significance significances inventor inventors discoverer
        discoverers capital capitals species specieses genus genuses predator predators prey preys
        ecosystem ecosystems adaptation adaptations trait traits chemical chemicals compound
        compounds reaction reactions solution solutions energy energies process processes
        phenomenon phenomenons mechanism mechanisms advice advices recipe recipes danger dangers
        hazard hazards consequence consequences outcome outcomes implication implications
        conclusion conclusions evidence evidences motive motives intention intentions joke jokes
        irony ironies pun puns moral morals lesson lessons inspiration inspirations myth myths
        legend legends civilisation civilisations civilization civilizations dynasty dynasties
        composer composers painter painters sculptor sculptors architect architects philosopher
        philosophers scientist scientists physicist physicists advantage advantages disadvantage
        disadvantages difference differences property properties hormone hormones gland glands
        antidote antidotes allergy allergies allergen allergens diagnosis diagnosises deficiency
        deficiencies bacterium bacteriums virus viruses parasite parasites pest pests climate
        climates molecule molecules isotope isotopes particle particles acid acids organism
        organisms relationship relationships likelihood likelihoods probability probabilities
        algorithm algorithms complexity complexities explanation explanations technique techniques
        procedure procedures precaution precautions orbit orbits planet planets constellation
        constellations galaxy galaxies angle angles circumference circumferences hypotenuse
        hypotenuses slope slopes derivative derivatives integral integrals quotient quotients
        """
    ),
    "made": _words(
        """
        invented discovered built founded created designed painted composed wrote written directed
        constructed established erected sculpted developed introduced formed domesticated
        originated manufactured patented released published born
        """
    ),
    "generic": _words(
        """
        usually typically normally generally commonly often traditionally mostly originally
        historically naturally ever rarely frequently probably possibly likely supposedly actually
        still
        """
    ),
    "business": _words(
        """
        store stores shop shops company companies hotel hotels restaurant restaurants street
        streets team teams product products magazine magazines newspaper newspapers airline
        airlines book books movie movies author authors doctor doctors patient patients school
        schools bank banks station stations song songs app apps user users channel channels ship
        ships boat boats customer customers road roads client clients employee employees bookshop
        bookshops cafe cafes pub pubs business businesses firm firms organisation organisations
        university universities museum museums album albums band bands artist artists game games
        venue venues tram trams bus buses train trains
        """
    ),
    "near": _words(
        """
        behind between beside under underneath beneath below above near atop across alongside
        opposite beyond next adjacent closest nearest farthest furthest closer nearer facing
        surrounding inside against left right
        """
    ),
    "count": _words(
        """
        one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
        sixteen seventeen eighteen nineteen twenty thirty forty fifty hundred dozen <number>
        """
    ),
    "digits": _words(
        """
        <number> <year>
        """
    ),
    "glyph": _words(
        """
        number numbers letter letters word words text texts digit digits symbol symbols name names
        phrase phrases message messages character characters slogan slogans logo logos time times
        date dates year years price prices sentence sentences
        """
    ),
    "sold": _words(
        """
        sold exported imported produced made won earned scored recorded reported spent shipped
        ordered billed charged born registered enrolled voted visited employed hired killed rented
        delivered downloaded manufactured built vaccinated admitted arrested
        lived died worked travelled traveled studied owned bought attended participated joined
        preferred chose answered responded migrated
        asked surveyed polled interviewed
        """
    ),
    "shown": _words(
        """
        shows show showed recorded records reached saw had got sold sells earned received spent
        produced exported imported won scored registered experienced contributes contributed
        accounts accounted makes made leads led ranks ranked tops topped grew dropped declined
        spends spend uses use consumes consumed buys bought sees emits emitted receives attracts
        attracted
        """
    ),
    "role": _words(
        """
        author authors publisher publishers editor editors sender senders recipient recipients
        addressee addressees sponsor sponsors manufacturer manufacturers director directors artist
        artists photographer photographers illustrator illustrators narrator narrators speaker
        speakers signatory signatories candidate candidates employer employers landlord landlords
        tenant tenants buyer buyers seller sellers supplier suppliers vendor vendors payee payees
        insured insureds patient patients applicant applicants contact contacts chairman chairmans
        chairperson chairpersons secretary secretaries
        applicants customers payer drawer
        """
    ),
    "way": _words(
        """
        work works function operate help protect move fly swim hunt survive reproduce communicate
        defend form grow carry produce make get stay keep know affect differ travel breathe digest
        absorb convert
        """
    ),
    "how": _words(
        """
        how why
        """
    ),
    "mark": _words(
        """
        bar bars line lines slice slices curve curves segment segments wedge wedges column columns
        dot dots series serieses stack stacks candle candles box boxes
        """
    ),
    "habit": _words(
        """
        lay lays hibernate hibernates migrate migrates bite bites sting stings hunt hunts breed
        breeds sleep mate mates shed sheds bloom blooms flower bear breathe molt camouflage swim
        fly live
        """
    ),
    "famous": _words(
        """
        president presidents king kings queen queens emperor emperors actor actors actress
        actresses singer singers politician politicians scientist scientists inventor inventors
        character characters player players athlete athletes celebrity celebrities leader leaders
        founder founders composer composers explorer explorers philosopher philosophers saint
        saints god gods goddess goddesses
        """
    ),
    "science": _words(
        """
        mammal mammals reptile reptiles amphibian amphibians vertebrate vertebrates invertebrate
        invertebrates conductor conductors insulator insulators carnivore carnivores herbivore
        herbivores omnivore omnivores photosynthesis photosynthesises evaporation evaporations
        condensation condensations erosion erosions friction frictions gravity gravities magnetism
        magnetisms inertia inertias momentum momentums acceleration accelerations velocity
        velocities density densities refraction refractions reflection reflections mutation
        mutations allele alleles genotype genotypes phenotype phenotypes gene genes chromosome
        chromosomes hormone hormones enzyme enzymes mitosis mitosises meiosis meiosises
        respiration respirations osmosis osmosises diffusion diffusions circuit circuits
        resistance resistances current currents catalyst catalysts oxidation oxidations ion ions
        electron electrons proton protons neutron neutrons nucleus nucleuses atom atoms fertilizer
        fertilizers pollination pollinations pollinator pollinators nectar nectars hibernation
        hibernations migration migrations camouflage camouflages evolution evolutions fossil
        fossils mineral minerals sediment sediments magma magmas tectonic tectonics eclipse
        eclipses equinox equinoxes latitude latitudes longitude longitudes tide tides treaty
        treaties revolution revolutions empire empires colony colonies monarchy monarchies
        democracy democracies constitution constitutions amendment amendments inflation inflations
        currency currencies etymology etymologies synonym synonyms antonym antonyms metaphor
        metaphors adjective adjectives noun nouns verb verbs area areas perimeter perimeters
        circumference circumferences hypotenuse hypotenuses radius radiuses diameter diameters
        volume volumes probability probabilities fraction fractions polynomial polynomials theorem
        theorems proof proofs bone bones muscle muscles organ organs gland glands artery arteries
        vein veins lung lungs liver livers kidney kidneys element elements metal metals nonmetal
        nonmetals alloy alloys polymer polymers solvent solvents solute solutes mixture mixtures
        algorithm algorithms
        rhyme rhymes syllable syllables vowel vowels consonant consonants pronoun pronouns prefix
        suffix
        offspring
        """
    ),
    "act": _words(
        """
        release releases absorb absorbs use uses need needs require requires produce produces make
        makes cause causes convert protect protects help helps lay lays attract attracts prevent
        prevents store stores transmit break breaks last lasts cost weigh develop digest excrete
        secrete emit spread hatch pollinate evolve react dissolve expand contract rust burn
        conduct evaporate condense orbit rotate erupt differ matter taste smell hurt kill harm fix
        treat cure celebrate worship believe speak export import invade rule govern signify
        symbolise mean imply suggest change improve reduce increase compare apply relate benefit
        damage serve heal rot spoil keep
        """
    ),
    "judged": _words(
        """
        ok okay normal safe possible common rare expensive valuable accurate authentic genuine
        suitable effective efficient sustainable biodegradable recyclable waterproof compatible
        contagious serious treatable curable fatal endangered domesticated native invasive
        perennial annual true false sound valid logical reasonable fair ethical justified historic
        antique fake useful useless reusable microwaveable flammable explosive radioactive acidic
        alkaline soluble magnetic conductive healthy nutritious fattening addictive abnormal sick
        ill dying infected contaminated ready related famous real fictional successful kosher halal
        organic overweight underweight obese hereditary fireproof overpriced deciduous evergreen
        nocturnal migratory hypoallergenic
        married wealthy rich employed retired
        """
    ),
    "group": _words(
        """
        group groups crowd crowds herd herds flock flocks team teams audience audiences queue
        queues family families pack packs swarm swarms gathering gatherings party parties line
        lines band bands crew crews class classes
        """
    ),
    "modal": _words(
        """
        would could should might may must shall will
        """
    ),
    "core": _words(
        """
        purpose function functions role point use uses origin origins habitat habitats diet
        lifespan benefit benefits cause causes reason meaning significance symbolism history
        mechanism advantage advantages disadvantage disadvantages effect effects importance
        etymology chemistry physics
        """
    ),
    "coded": _words(
        """
        jersey bib phone serial telephone tail flight house room account order model part page bus
        route platform lot batch gate seat track plate car coach customer invoice policy ticket
        passport license licence registration reference tracking contact fax extension version
        chapter section table locker
        """
    ),
    "print": _words(
        """
        book books novel novels paperback hardback article articles letter note notes report email
        emails message messages memo card postcard review comment tweet post foreword headline
        caption pamphlet leaflet column textbook
        magazine newspaper journal paper poster brochure
        """
    ),
    "language": _words(
        """
        english german french spanish italian portuguese dutch polish russian chinese mandarin
        cantonese japanese korean arabic hindi turkish greek latin swedish danish norwegian
        finnish czech hungarian ukrainian vietnamese thai indonesian hebrew urdu bengali persian
        """
    ),
    "markup": _words(
        """
        latex markdown json csv yaml xml plaintext excel
        """
    ),
    "answer": _words(
        """
        answer answers reply replies response responses explanation explanations message messages
        """
    ),
    "manner": _words(
        """
        shorter longer simpler briefer clearer brief short concise formal casual precise polite
        specific
        """
    ),
    "account": _words(
        """
        account explanation description overview summary breakdown interpretation analysis rundown
        depiction narration commentary narrative synopsis outline retelling
        """
    ),
    "crowd": _words(
        """
        people folks they everyone everybody kids children men women boys girls players friends
        crowd family team group guests tourists students workers
        """
    ),
    "shape": _words(
        """
        triangle triangles circle circles rectangle rectangles square squares polygon polygons
        trapezoid trapezium parallelogram rhombus hexagon pentagon cylinder cone cube prism sphere
        sector pyramid quadrilateral
        """
    ),
    "measure": _words(
        """
        area perimeter circumference hypotenuse radius diameter volume angle angles length
        """
    ),
    "geo": _words(
        """
        ocean oceans continent continents colony colonies state states country countries region
        county province peninsula hemisphere
        """
    ),
    "office": _words(
        """
        department departments division divisions office agency ministry committee bureau branch
        section council organisation organization institute institution company firm bank
        university
        """
    ),
    "work": _words(
        """
        film movie book novel story tale opera play series myth legend cartoon comic franchise
        musical
        """
    ),
    "source": _words(
        """
        chart charts graph graphs plot plots infographic report document form receipt
        invoice bill letter memo survey poll census study statement article timetable schedule
        """
    ),
    "support": _words(
        """
        sofa couch bed table chair floor ground grass shelf desk bench roof box bag basket drawer
        car boat water sink street road counter plate bowl tree cage wall mat rug pillow
        windowsill sill stairs balcony kitchen garden pool truck bus train cup glass fridge oven
        lap branch fence stove
        """
    ),
    "ask": _words(
        """
        what which who whom whose where when why how is are was were do does did has have had can
        could would should will may might must describe caption summarise list read count locate
        find point mark segment identify name explain tell give show write generate transcribe
        translate extract calculate compute estimate compare convert turn draw highlight detect
        outline provide state determine solve predict suggest recommend spell label tally
        enumerate add sum check guess narrate paint put type copy create make design compose help
        box pinpoint define infer work figure indicate whats wheres look
        """
    ),
}

_COUNTING = {
    **_each(
        18,
        """
        how many did they|he|she|we|you put|use|plant|catch|eat|build|place|leave
        """,
    ),
    **_each(
        16,
        """
        is there a single|lone|sole
        """,
    ),
    **_each(
        14,
        """
        how many, how numerous, headcount, head count, ^total <thing>, tally, tot up, number pls,
        how mny
        """,
    ),
    **_each(
        13,
        """
        how large|big|small is the|this ~ <group>, size of the|this ~ <group>,
        crowd|group|herd|flock|team size, is there a|another ~ second|third|fourth|another|other,
        is there another, is there only, other ones|kids|people too,
        how often|frequently does|do the|it ~ occur|appear|show, how often,
        occurs|appears most often, occur|appear ~ times, figure for, in all, all told, combined,
        a second|third, twice|double as many, half|a ~ dozen, are all <count>, lone|sole|solitary,
        <be> ~ alone, just|only <count>, how plentiful, count up, <be> ~ all here,
        how many of them, in what number, a pair|trio|quartet, number ~ odd|even, add up to,
        <count> or <count>, <count> or more|fewer|less, one or several|many|more|two,
        no more|fewer|less than, <be> <det> ~ alone, on his|her|its|their own$
        """,
    ),
    **_each(
        12,
        """
        <which> ~ <have>|holds|contains the most|fewest|least, enough ~ for the <count>,
        population of ~ on|in, how often the|does the letter|word, count how,
        more ~ or <det>? ~ more, holds the most, a ~ or a group
        """,
    ),
    **_each(
        11,
        """
        is|are there ~ more|fewer|less than a|an? <count>, is|are there ~ <count>,
        is|are there exactly|only|just|at|about|around|nearly ~ <count>, more|fewer than <count>,
        exactly|only|just|least|most <count>, is|are there more|fewer|less, are there as many,
        <number>|<digits> of them, as many ~ as, there more of, ^number of,
        a|the|exact|total|same number of, outnumber, outnumbers, most numerous, <be> ~ numerous,
        more ~ than, fewer ~ than, <have> more, <have> fewer, just|only the one
        """,
    ),
    **_each(
        9,
        """
        ^count, count, counting, counted, enumerate, the ~ number of, number of, total of,
        same|equal|exact|odd|even number, equal numbers, equally numerous, a count, ratio of,
        there are fewer|more, i|he|she|they say|says|said|counted|get|got <count>,
        ^pairs of
        """,
    ),
    **_each(
        7,
        """
        amount of, quantity of, in number, numbers of, as many, greatest|largest|smallest number,
        there are <count>, do|can you|i see|spot|count <count>, <be> all <number>,
        there is <count>, either|all|both of the <number>, more than one, number ~ left, just one,
        how much of the, only one, a single, number ~ <be>, numbering, equally many, <have> <count>
        """,
    ),
    **_each(
        4,
        """
        several, multiple, a total, altogether, in total, pair of, couple of, count of
        """,
    ),
    **_each(
        3,
        """
        <count>, fewer, number, most of the, majority
        """,
    ),
}

_OCR = {
    **_each(
        24,
        """
        ^ocr, ^read <the> ~ value|number|amount|figure,
        as the ~ <medium> shows|says|states|tells|puts|gives|has
        """,
    ),
    **_each(
        20,
        """
        sum|ratio|difference|average of|between the ~ <mark>
        """,
    ),
    **_each(
        18,
        """
        what|which number <be> <it> ~ <hold>, what|which number <be> <det> ~ <hold>, as
        stated|shown|given|listed|printed|reported|indicated|recorded|noted|displayed|written|specified|mentioned
        in|on|by|at|under, how many more|fewer ~ <be> ~ <sold>, how many more|fewer ~ <unit>
        """,
    ),
    **_each(
        17,
        """
        how many ~ does|do|did the|this|it ~
        state|list|mention|report|claim|specify|quote|say|promise|advertise|record
        """,
    ),
    **_each(
        16,
        """
        how many ~ <unit>, how many ~ did, how many ~ <sold>, how much <do>|is|are|was|were ~ cost,
        how many <det>? ~ <be> ~ <sold>, <count> or <count> <unit>, where is ~ flight|train|bus
        going|headed|bound, according to <the> ~ <medium>, going|judging by <the> ~ <medium>, find
        <det> ~ <entry>, find <det> ~ <glyph>, to|into|as|in <markup>,
        number of <the> ~ <coded>, whose ~ signature|name|autograph|address|initials, <mark> ~
        stand|stands for
        """,
    ),
    **_each(
        14,
        """
        ^does|do the ~ caption, to|for|from|by <which> ~ <office>, how
        high|low|large|much|strong|big was|were the ~ <entry>,
        first|last|second|third|top|bottom|opening|closing line|word|sentence|verse|paragraph
        of|on|in, <mark> ~ represent|represents|mean|means|indicate|indicates, <which>
        beer|wine|whisky|soda|cereal|airline is|are this|these|that|it|shown|listed
        """,
    ),
    **_each(
        13,
        """
        ^which ~ <mark> of the ~ is the ~ <extreme>, <which> ~ <mark> <be> the ~ <extreme>,
        jot|note|write down, how far is it to, <medium> point|points to, what unit,
        ingredients|items|names|prices ~ listed, the text ~ in|on|at, notifications, <coded> number,
        who wrote|authored|published the|this|that ~ <print>,
        error|zip|post|country|area|dialling|booking|access|discount|promo|tracking code,
        confirmation|product|voucher|verification|order|postal|status code, error message, subject
        line, quantity|amount of ~ <sold>, sell|sells|sold|selling|going for$, legend
        entry|label|item, under|in which heading|section|chapter|paragraph|row,
        leftmost|rightmost|topmost|first|last|top|bottom label|value|number|entry|word|digit,
        setting|option|mode|tab ~ <be> ~ picked|selected|chosen|set|enabled|ticked, on|at|from which
        platform|page|track|gate|line|date|day
        """,
    ),
    **_each(
        12,
        """
        transcribe, transcribed, ocr, transcription, as per, per the ~ <medium>, to whom <be>|does ~
        addressed|sent|written|made|issued|payable, what|which ~ <glyph> <be> ~
        on|in|at|above|below|under|printed|written|shown, what <do> <it> ~ say|says|read, what <do>
        <the> ~ <medium> say|says|read|show|list, type up|out, type it|this up|out, read
        out|off|aloud|me, read the|this|that|what|it, in the legend, the legend, which step
        comes|is, humidity|temperature|forecast shown|on, <medium> for$, <which> ~ <entry> is it
        for, copy|transcribe the, copy out, ^copy, more|less|higher|lower|greater|fewer than <count>
        <unit>|percent|dollars|euros, which of the listed, how long is the ~
        guarantee|warranty|contract, what is the <fact> ~ in the ~ <medium>, in the table, <entry>
        more|less|higher|lower|over|above|under than, <be> the number <digits>, a <number> or a?
        <number>, is that|this|it a <number>, how fast|much|long|high does it|the ~
        show|say|read|state|give|list|display, size|weight|amount|price|word|words <be>? on the ~
        label|tag|ticket|receipt|packet|sticker
        """,
    ),
    **_each(
        11,
        """
        <written> on|in|at|under|for <det>? ~ <medium>, <which> ~ <be> ~ <written>,
        what|which ~ size <be> ~ <written>, ^what is the ~ amount due, what is the total,
        what is the ~ total, the total$, amount due|owed|paid|payable,
        total ~ due|amount|cost|price|bill, <which> ~ number <be>|<do>,
        <which> ~ <be> ~ ticked|checked|underlined|circled|highlighted|marked|listed|crossed,
        what hours|days|dates, hours|opening|closing time|times|hours,
        caption under|below|of|says, net weight, second|third ~ highest|lowest|largest|smallest,
        <digits> ~ highest|lowest, highest|lowest ~ <entry>, which ~ listed,
        the instructions say|tell, instructions tell,
        what <do> the ~ <medium> ~ charge|give|state|recommend|advise|promise|claim|tell|advertise,
        <be> the ~ word|words|phrase, characters on the,
        say|says|said|read|reads$
        """,
    ),
    **_each(
        10,
        """
        <colour>|dashed|dotted|solid series|curve|slice|wedge,
        in|from <the> ~ <source>, does the ~ <medium> ~ show|list|mention|contain|include
        """,
    ),
    **_each(
        9,
        """
        read, reads, spell, spells, spelled, spelt, misspelled, handwriting, handwritten, written,
        who wrote|signed|sent|issued|authored|published, to whom, from whom,
        name of the|this ~ <business>, say|says|said on|in|about|under|at,
        name ~ on|printed|listed,
        what|it|they|sign|label|text|that|caption|bubble|she|he|this say|says|said, surname,
        <which> ~ <plotted> ~ <have>|<be>|<do>|<shown> the|a|its ~ <extreme>, <which> <business>,
        <which> ~ <plotted> ~ <have>|<be>|<do>|<shown> ~ <extreme>, what time <be>|does|do|did,
        <which> ~ <shown> the|their|its ~ <extreme>, <which> ~ group <be>|<do>|<shown>,
        the most|least$, <fact> ~ <written> on|in|at, what is it showing|reading|displaying,
        <medium> ~ showing|reading, make out who|what, signed|wrote ~ it to,
        <glyph> on the ~ <medium>, did the ~ <role>, dotted|dashed|solid ~ <mark>
        """,
    ),
    **_each(
        8,
        """
        <which> ~ <entry>, what <be> <det>? ~ <entry>, ^<det>? ~ <entry>$,
        ^<det>? ~ <entry> on|in|of|for|at|from|to|listed|shown|printed, when <do>|<be>,
        in|on|by|for|since|from|until|during|at <which> ~ <plotted>, addressed to, signed by,
        issued by, <be> ~ <written>, say|says, <extreme> ~ <entry>, <entry> in <year>,
        the ~ <entry> on|in|for|of|at, <entry> ~ <written>, how much <do>|is|are|was|were,
        <written> on|in|at|under|for|by|as, tell|give|extract ~ <entry>, who is the ~ <role>,
        who <be> ~ <written>, <which> ~ <plotted> ~ <shown>, <glyph> <be> ~ on
        """,
    ),
    **_each(
        7,
        """
        what time, <colour> <mark>, <mark> represent|show|stand|indicate, ^list,
        <colour> ~ <mark> ~ <shown>
        """,
    ),
    **_each(
        6,
        """
        text, printed, title of, letters, letter, words, word, brand, url, number on, numbers on,
        license|licence plate, plate number, phone|serial|jersey|bib|tail|flight|house number,
        model|part|page|bus|train|route|line|platform|lot|batch|account|order|invoice number,
        most|least ~ expensive|cheap|popular|common|sold, cheapest, dearest, priciest,
        at their|its highest|lowest, filled in, inscription, axis, receipt, invoice, menu item,
        what year, what date, jotted, misspelling, typo, extract, parse, digits,
        <digits> ~ <unit>, does the ~ <medium> ~ show|say|mention|list|read|state|give|contain,
        mention|mentions, how long is the ~ <entry>,
        increase|decrease|rise|fall|drop|grow|change between|from|over, who published, gate and,
        boarding, track number, forecast, in step <count>, step <count>, underlined, ticked,
        circled, author of the, list the ~ printed|written|listed
        """,
    ),
    **_each(
        4,
        """
        saying, said, labelled, engraved, headline, chart, graph, plot, document, logo, numbers,
        displayed, due, expire, expires, expiry, expired, wrote, trend, increase, decrease,
        increased, decreased, rose, fell, percentage, percent, cost, costs, price, priced, total,
        stated, listed, when, according to, scoreboard, deadline, sales, revenue, the ~ <entry>,
        open|close|closes|opens on|at, in <year>, show|shows <digits>, scanned, cheaper, dearer,
        name on, appears on
        """,
    ),
    **_each(
        2.5,
        """
        <medium>, <entry>, <year>, <written>, <digits>, name, names
        """,
    ),
    **_each(
        1,
        """
        screen, list
        """,
    ),
}

_KNOWLEDGE = {
    **_each(
        40,
        """
        if each|every
        """,
    ),
    **_each(
        24,
        """
        borrowed|derived|descended from, why, how come, landmark|monument ~ located, value of
        x|y|z|n|k|t, figure of speech, expected ratio, what is <number> percent of, what is|are
        angle, which term ~ matches|match|identifies|names, does the ~ <picture> ~
        commemorate|celebrate|refer
        """,
    ),
    **_each(
        20,
        """
        find <det> ~ <measure>, find <det> ~
        sum|product|mean|median|solution|slope|probability|unknown|angle,
        associated|linked|connected with, relation|relationship|relations|connection|similarity
        between, sum|product|average|mean|median of the|these|all ~ numbers|dice|digits|angles, how
        big|large|wide is the? angle, nutritional|nutrition ~ value|values|content, how many
        minutes|hours|days ~ until|till, style|school of ~ architecture|art, what would <det> ~
        look, going to ~ do|say|happen, <number> times the, allowed here,
        <which> season do|does <this>|these, how many ~ do|does an|a
        """,
    ),
    **_each(
        18,
        """
        how often|frequently do|should|can|must|may i|we|you|one,
        <be> ~ high|low|normal|good by ~ standards, city as its|their capital,
        company|firm|group ~ owns|makes|produces the,
        <which> ~ <geo> is|are ~ highlighted|shown|shaded|coloured|marked|outlined|labelled
        """,
    ),
    **_each(
        16,
        """
        if i|we|you|one|someone, comes|come next, next in the sequence|series,
        where was|were ~ born|made|invented|founded|built, where was|were the ~ who|that,
        right of way, mean|means that, who was|is ~ <famous> when|at|in,
        illegal|legal|allowed|permitted ~ to,
        where <be> <it> ~ cultivated|grown|mined|farmed|spoken|harvested|domesticated,
        where do|does|did|can <it> ~ live|come|grow|originate|nest|spend|breed|migrate|hibernate,
        where do|does|did <the> ~ spend|nest|breed|hibernate|migrate,
        poisonous|venomous|toxic|harmful|dangerous|safe to|for|on|in|around,
        <which> <kind> of ~ <be> formed|caused|obtained|extracted|produced,
        <measure> of <det> ~ <shape>,
        <which> ~ gives|give <det> ~ <look>, <which> <geo> is this|it|that|shown|pictured, an ~
        example of, rhyme|rhymes with, missing number|term|value ~ in|of,
        good|bad|safe|suitable|ideal ~ place|spot|time|idea|choice for|to
        """,
    ),
    **_each(
        15,
        """
        how many calories|kcal, where do|does|did|can ~ live|come|grow|originate|nest|buy|get|find,
        where can|could|should|would i|we|you|one, where do <thing>, where do ~ like,
        where <do> <det> ~ live|come|grow|originate, where ~ <be> <det>? ~ native|found ~ nature,
        where do <the>? ~ originally|usually|naturally|normally,
        <which> <be> <det>? ~ <core> of|for|behind, lay|lays|laying eggs
        """,
    ),
    **_each(
        14,
        """
        name of the famous, what gives, is it bad|ok|okay|fine|normal|good|safe if,
        which is denser|heavier|stronger|hotter|faster|harder|warmer|colder|safer|healthier,
        which movie|film|book|game|show|series is, chemical reaction, english for|word,
        does <it> ~ need, need ~ of sun|water|light, what year did, event in history, in history,
        usually|normally|typically ~ have, sign of, legs do|does an|a, most famous,
        currency of the country, countries border,
        contain gluten|nuts|dairy|milk|sugar|alcohol|protein|caffeine|vitamin, should the <person>,
        by ~ standards, what|which gas|chemical|nutrient|acid <do>,
        states|countries|cities|continents <be> ~ farthest|furthest|closest|nearest,
        abbreviation|acronym|term|idiom ~ mean|means,
        too <state> for, made up of, mean|means for,
        in <which> ~ <work>, <which> ~ <famous>|artist|band|director|author ~
        sang|recorded|composed|directed|starred|voiced|portrayed,
        measure|measures$, criticising|criticizing|mocking|satirising|satirizing|implying, happened
        ~ before|after|earlier, <person> <have> to, <person> ~ <have> to
        """,
    ),
    **_each(
        13,
        """
        what if, for what, what <do> ~ mean|means, what <do> <it> ~ mean|means,
        how do i|you|we|they|people|these|those|such, how can|could|would|might|should, how to,
        what <modal> ~ happen, what|which|who|where <modal>, what <modal> <det>? ~ happen|be|do,
        what|which <det>? ~ <fact> ~ <modal>, which ~ <modal>, how <modal>, what for, used for,
        write|draft|compose me|us|him|her a|an ~ story|letter|email|poem|song|script|reply|essay,
        write|draft|compose me|us a|an ~ answer|message|note|response,
        warning|omen|symptom|proof|indication of a|an, does it ~ hurt, hurt when|if
        """,
    ),
    **_each(
        12,
        """
        difference between, how tall|old|big|large|long|deep|high|heavy can|do|does|will|would,
        <which> ~ <do> <det>? ~ <act>, what <do> <det>? ~ <act>, example of,
        story|trick|science|idea|meaning|history|message|reason behind,
        who wears|uses|eats|needs|makes|buys, and|or how do|does, how old|long|much would|will,
        ^eat|drink|cook|freeze|wash|reuse|recycle|keep|touch|pet it|this|that|them|these,
        eat|drink it|this|that|them ~ raw, war|battle|revolution|conflict broke|break,
        run|runs on, split it|this|that, owns, <which> <kind> of ~ <be> formed|caused|made by,
        event|law|theory|factor explains|explain, does everyone|everybody|each owe|pay,
        war|battle|revolution ~ broke|ended|began,
        a|an ~ expensive|valuable|healthy|safe|rare|typical|famous|common|suitable|appropriate|legal
        """,
    ),
    **_each(
        11,
        """
        scientific|latin|botanical|chemical name,
        write|compose|create|make|draft|invent <det>? ~
        story|poem|letter|email|essay|code|script|song|haiku|review|recipe|quiz|tweet|reply
        """,
    ),
    **_each(
        10,
        """
        explain, calculate, compute, infer, deduce, predict, inferred, deduced, concluded,
        conclude, used to|in|as, use it|this|that|these|them for, stand|stands for, for$,
        come|comes|came|coming from, originate, originates, originated, originally, native to,
        happens|happen if|when|next|to, happen, happens,
        how is|are|was|were <det>? ~ made|built|formed|produced|created|cooked|prepared|powered,
        how <do> <det>? ~ <way>, how <do> <det>? ~ <thing>, what eats, who <made>, who first,
        when was|were <det>? ~ <made>, year was|were <det>? ~ <made>, good for, bad for,
        safe to|for, harmful, poisonous, venomous, toxic, edible, dangerous, healthy, unhealthy,
        healthier, nutritious, vegan, vegetarian, allergic, allergies, legal, illegal, appropriate,
        worth, <which> ~ <fact>, what <be> <det>? ~ <fact>, what ~ <fact> <be>|<do>,
        what <kind> of ~ <fact>, <fact> of,
        can|may i|we|you|one|my|people|someone ~ eat|use|drink|touch|keep|grow|wear|put|reuse|take,
        can my ~ eat|have|drink, made by, famous for, known for|as, rich in, belong|belongs to,
        <generic>, which of these|the|those|following ~ can, translate, translated, translation,
        in real life, in the wild, how long does|do|did|will|would|can|should|have,
        how much does|do an|a ~ weigh, feed|feeds|live|lives on, what <do> <det>? ~ eat, python,
        html, css, code, recipe, poem, essay, joke, funny, humour, ironic, sarcastic, meme,
        which|what country|city|region|culture|religion is|are|does|did <the>, solve, solving,
        should i|we, what should, write ~ story|letter|email|code|script|program|essay|poem|song,
        mean|means in|to|when, as its|their capital, mean|means in|to|when, chemically,
        biologically, medically, economically, scientifically, technically, legally, calories in,
        hemisphere, blood type, food chain|web, boil|boiling|melting|freezing temperature,
        side length|lengths
        """,
    ),
    **_each(
        9,
        """
        best for, gluten, protein, caffeine, vitamin, contain <fact>, dish contain, food contain,
        how often to|should, <thing> like this|that|these|those,
        a|an ~ like this|that|these|those, like this$, needs|need less|more|most|least,
        typical for|of, tell us|me about the ~ <fact>|temperature,
        what battle|war|treaty|revolution,
        which battle|war|treaty|revolution|sea|river|mountain|ocean|empire, flow|flows into,
        in carpentry|medicine|cooking|physics|chemistry|biology|mathematics|reality|general,
        adult ~ <thing>, tell which|whether|how, look like in
        """,
    ),
    **_each(
        8,
        """
        <do> <det>? ~ <habit>, what can i|we|you|one ~ cook|make|do|bake|use,
        boiling|melting|freezing point, best|right|proper|easiest|correct way,
        is my ~ sick|broken|dying|ok|okay, sick, ill, infected, history, get rid of, how old <do>,
        how old can, goes|go ~ with, <do> <det>? ~ <act>, <be> <it>|<the> ~ <judged>,
        <be> ~ <judged>, can <it> be, can <the> ~ be, do i|we need|have, i need for,
        ideas|tips|ways|facts|questions|reasons|suggestions|alternatives,
        ^name a|an|some|three|two, enough ~ to, moral, message of the, refer|refers to <science>,
        based on <this>, amendment, do people|humans|animals|plants,
        <which> ~ makes|make|causes|cause, what|which team won, estimate
        """,
    ),
    **_each(
        7,
        """
        <det> ~ <fact>, <modal> ~ be, most likely, likely to, reason, how <do>, ^<modal>,
        symbolise, symbolises, meaning, significance, recommend, suggest, suggests, imply,
        implies, advice, tips, fix, repair, treat, cure, prevent, cause, causes, caused, affect,
        affects, help|helps it|them|him|her|the|plants|animals, adapted, survive, survives,
        evolve, evolved, scientific, which state, which ocean, which continent, capital of,
        landmark, correct answer, what kind of person, compare, magnetic, kinetic, electric,
        chemical, physics, biology, chemistry, photosynthesis, in common, classified, classify,
        considered, statement, statements, complete the, wrong with, go|goes|pair|pairs with,
        taste, tastes, smell, weigh, weighs, experiment, conduct, conducts, float, sink, rust,
        melt, dissolve, boil, freeze, burn, react, reacts, what is the point, do next,
        <be> supposed|meant to, responsible for, symbol of, arithmetic, work out, enough ~ for,
        afford, works, <this> kind|type|sort of, animals|things|ones like, cost to, how fast,
        how hot, <how>$, continued, continue, endangered, extinct, discovered, called in,
        <made> by, someone|people <modal>|usually, <be> it ~ to|that, do about|with,
        which of these|the ~ is|are a|an|the, who is the ~ <famous>, which of <the> following,
        <science>
        """,
    ),
    **_each(
        6,
        """
        from$
        """,
    ),
    **_each(
        4.5,
        """
        <modal>, <fact>, if, because, such, how, painted by, directed by, artwork, movie, film,
        actor, celebrity, wrong, who is this|that, called, mean, means, idea, ideas, plan, better,
        difference, change, grow, grows, produce, produces, doctor, represent, medicine, work,
        live, lives, sum, probably, likely, invented, represents
        """,
    ),
    **_each(
        3,
        """
        famous, popular, invention, traditional, typical, culture, country, solution, real
        """,
    ),
}

_SPATIAL = {
    **_each(
        30,
        """
        spatial|positional relation|relationship
        """,
    ),
    **_each(
        24,
        """
        on|under|behind|beside|against|above <which> ~ <be> the ~
        standing|sitting|lying|hanging|parked|perched,
        describe where|the position|location|layout|arrangement
        """,
    ),
    **_each(
        20,
        """
        ^y <number>$, ^find <det> ~ <person> wearing|holding|carrying|with|in|who|that,
        ^how <be> <det>? ~ arranged|placed|positioned|laid|lined|stacked|grouped,
        see|notice in <the> ~ top|bottom|left|right|upper|lower
        """,
    ),
    **_each(
        18,
        """
        where would|do|should i|you|we click|tap|press|swipe|drag
        """,
    ),
    **_each(
        16,
        """
        draw|put|place a|an|the ~ rectangle|circle|box|frame|polygon|outline|ring|marker|dot,
        in|at|towards <which> ~ corner|side|half|quadrant|edge, from
        left|right|top|bottom|back|front to left|right|top|bottom|back|front,
        what <be> in the ~ middle|centre|corner|background|foreground|back|front,
        <thing> is|are in front, how high up
        """,
    ),
    **_each(
        14,
        """
        bounding box, bbox, coordinates, ^where, whereabouts, draw ~ box, box around|round, where,
        return ~ box, its ~ box, locate, pinpoint, ^point, point to|at|out, ^segment, ^outline,
        ^highlight, ^box, ^detect, xmin, refer|refers to, region, regions,
        return|give|output|provide|predict ~ bounding boxes|box,
        give|return|output|provide me? the ~ box|boxes|polygon, bounding boxes,
        what is that next|behind|under|on|above|beside|near, leaning on|against, sitting on$,
        <placed> on$, standing in the, who is <placed>, where do|does the,
        <which> ~ <be> ~ immediately|directly|just outside|inside|above|below|behind,
        ^find <det> ~ <person>, ^find <det> ~ <thing>
        """,
    ),
    **_each(
        12,
        """
        ^is|are the ~ in front of|behind|beside|next|near the ~ one|ones$
        """,
    ),
    **_each(
        10,
        """
        what|which side|corner|direction|way|end|half|part|hand, ^mark, ^find, mask, segment,
        <which> ~ <be> ~ <near>, who <be> ~ <near>, what|who <be> ~ <placed> <prep>, position of,
        what|who <be> <prep> <det>, what|who <be> directly|right|just|immediately <prep>,
        what|which ~ <thing> <be> ~ <near>, what can be seen <prep>, location of, located,
        what|who lies|stands|sits|hangs|separates|surrounds|lurks, how far, relative to,
        with respect to, in relation to, left or right, right or left, above or below,
        in front of or behind, what <be> in between|front, what <have> been placed|put, oriented,
        orientation, arranged, arrangement, positioned, leftmost, stands|sits in|behind, rightmost,
        topmost, bottommost, uppermost, towards|toward or away, towards ~ or away, <placed> <near>,
        in the ~ left|right, hand side, on|at|under|behind|from|beside <which>,
        north|south|east|west of, north|east|west|south or, piece of ~ <near>, <thing> <near>,
        built|placed|put|mounted|sitting|lying|standing|painted upon, upon$, ^circle, ^encircle,
        ^annotate, ^delineate, ^crop, ^frame the|this|that|each|every, ^put a|an ~ around|round|on,
        ^is|are <det> ~ on|in|at|by <det> ~ <support>$
        """,
    ),
    **_each(
        9,
        """
        ^is|are <det> ~ over|inside the, on what <be>|do|does, what part of the,
        which part of the, in|at the ~ corner, leaning against
        """,
    ),
    **_each(
        8,
        """
        order of <det>
        """,
    ),
    **_each(
        6,
        """
        <be> <det>? ~ <near>, in the middle
        """,
    ),
    **_each(
        5,
        """
        in front of, behind, above, below, underneath, under, beneath, next to, beside, between,
        on top of, adjacent to, opposite, to|on|at the ~ left|right, left of, right of, left side,
        right side, at the top|bottom|back|front|end, top of, bottom of, closer, farther, nearer,
        nearest, closest, farthest, furthest, facing, surrounding, surrounded by, alongside,
        towards, toward, parallel, perpendicular, foreground, background, in the middle|centre,
        left to right, heading, across from, distance, <placed> <prep>, on <the> ~ left|right
        """,
    ),
    **_each(
        3,
        """
        left, right, near, outside, inside, within, around, over, top, bottom, corner, against,
        along, among, hanging, on what, in what, side, front, edge, direction, spot, far
        """,
    ),
    **_each(
        1.5,
        """
        in|on|at the
        """,
    ),
}

_SCENE = {
    **_each(
        24,
        """
        time of the day|year
        """,
    ),
    **_each(
        16,
        """
        <which> ~ style <be> <det> ~ <picture>, or in the wild, zoo or in,
        stand|stands out,
        <be> it a|an ~ day|night|evening|morning|afternoon, <kind> of ~ <place>|building|place|space
        <be>
        """,
    ),
    **_each(
        15,
        """
        where <be>|was|could <this>|it|the ~ <picture>? ~ taken|shot|captured, ^what is$,
        ^what is there$, ^what is shown|seen|depicted|pictured$, ^what do you see|notice$,
        ^what can be seen$, ^what can you see|notice$,
        write|give|suggest|generate|compose|create|invent|find ~ title|caption|headline,
        write|give|suggest|generate|compose|create|add|with a|an|some|me ~
        title|caption|headline|captions,
        up with ~ title|caption, up with a|an ~ title|caption, ^headline <the>,
        people|they ~ doing, where <be> <the> ~ <picture>, scene$,
        good|better|fitting|suitable ~ caption|title, you caption|title|describe this|it,
        ^what you|i see$, story of the ~ <picture>, ^where is this$,
        the|this ~ <picture> black and white, black and white,
        <account> of <the> ~ <picture>, <account> of what|everything|all, everything|all that
        is|you|there|i|we, everything in|there|here, all about$,
        main|key|principal|central|dominant|primary ~
        elements|features|components|aspects|details|contents|subject|focus|subjects|motif, <crowd>
        ~ doing, <crowd>|these|those ~ up to$, <crowd> ~ busy with,
        what <do> one|you|we|i ~ see|notice|observe|spot, hashtag|hashtags for
        """,
    ),
    **_each(
        14,
        """
        have|has a|an ~ style|mood|vibe|feel, a|an ~ style$,
        what is|are everyone|everybody ~ doing, in the mountains|city|countryside or,
        by the sea|or ~ sea, at|in a|an|the ~ <place>|<event> or, how would|do|might you describe,
        middle of the day|night|winter|summer|afternoon, getting dark|late|light,
        <which> ~ <whole> <do>,
        the place|area|scene|neighbourhood look|looks|seem|seems|feel|feels|appear, <picture> ~
        convey|evoke|express|radiate|communicate, <which> <kind> of ~
        sport|game|activity|dance|race|performance|contest|competition,
        what|which sport|game <be>,
        landscape|place|area|surroundings look|looks like, what|which city|town|village is
        this|it|that
        """,
    ),
    **_each(
        13,
        """
        describe, caption for, captions, ^caption, write ~ caption, description, describing,
        summarise, summary, alt text, <be> ~ happening, going on, taking place, happening, describes
        <the> ~ <picture>, <picture> caption, sum <the>? ~ up, what <do> <this>|it|the ~ <picture>
        show|shows|depict|portray|capture|convey|represent, what <do> this show|depict, tell me ~
        about, about <the> ~ <picture>, how is the weather, what is <the> ~ <picture>
        of|about|showing, explain what|this|the ~ <picture>, time of day, time of year, title for,
        <whole> <picture>, sentence|paragraph about, whole|entire ~ <picture>, sentences about,
        <picture> shows, <picture> in|into ~ words, looking at here, looking at$, <picture> as a
        whole, in general, <picture> ~ overall, what <kind>? of? place|room|scene|area|location, in
        a nutshell,
        a|an ~ caption, the ~ best|right|correct|suitable|fitting|appropriate ~ caption,
        what you|i|we|one ~ see|sees
        """,
    ),
    **_each(
        12,
        """
        ^what happened$, gathered here|for|to,
        <which> <kind>? of? terrain|biome|neighbourhood|neighborhood,
        <whole> like, walk|talk|take|run me|us through
        """,
    ),
    **_each(
        11,
        """
        show|shows|depict|depicts|showing a|an ~ <place>|<event>
        """,
    ),
    **_each(
        10,
        """
        <which> <kind>? of? ~ <whole>, <be> the ~ <whole>, indoors, season of, sort of day,
        outdoors, indoor, outdoor, mood, atmosphere, weather, season, what|which event|occasion,
        <which> ~ place is this|it, <which> ~ room is this|it, <kind> of ~ <whole>|<event>,
        <kind> <event>|<place>|<whole>, <kind> of ~ <place>|<place> is|was this|it, overall,
        impression, overview, gist, in a|one|few sentence|sentences, in|into ~ words, depict,
        depicts, depicting, depicted, portray, portrays, vibe, scene category, as a whole,
        <picture> ~ taken|captured|shot, was this taken, set in, setting,
        is|was it|this|that ~ <weather>, day or night, what|which sport|game
        """,
    ),
    **_each(
        8,
        """
        is it ~ dark|light|day|night|cold|hot|warm ~ outside,
        is it dark|light|cold|hot|warm|windy|calm, <be> the sky, sky clear|cloudy|blue|overcast,
        just rained, outside$, peaceful, chaotic, crowded or, aerial view, holiday is|are,
        <be> they ~ at a|an|the <event>|<place>, <be> they having a|an,
        people at a|an <event>|<place>, a photo|picture|image of a ~ <place>
        """,
    ),
    **_each(
        7,
        """
        is|was this|it|that <det> ~ <place>|<event>,
        look|looks|feel|feels like <det>? ~ <weather>, look|looks like <det>? ~ <place>|<event>,
        <weather> or, ^<det>? ~ <picture> of, what do|can you see, everything you see,
        celebrating, celebration, celebrated, scene, story, narrate, <weather>$, at a glance,
        <whole> of the, people|they|everyone|crowd doing, <place> or <det>? ~ <place>,
        sentence ~ describes, <event> or
        """,
    ),
    **_each(
        4,
        """
        environment, in detail, detailed, landscape, scenery, theme, style, genre, lighting,
        event, occasion, festival, activity, place, <whole>, <event>, <weather>, festive, cosy,
        tone, candid, feel,
        the ~ caption
        """,
    ),
    **_each(
        2,
        """
        <place>, day, night, <picture>, room
        """,
    ),
}

_ATTRIBUTE = {
    **_each(
        20,
        """
        ^is|are|does the ~ inside|in|within the ~ bounding box|box
        """,
    ),
    **_each(
        18,
        """
        following best? describes|describe the ~ <look>
        """,
    ),
    **_each(
        16,
        """
        any sign|signs|trace|hint of, how would|do|might you describe <det> ~ <look>, ^<which> ~
        colour <be>, <thing> or <det>? ~ <thing>$
        """,
    ),
    **_each(
        15,
        """
        <colour>$
        """,
    ),
    **_each(
        14,
        """
        how <do> <det>? ~ look|looks, what <be> <det>? ~ made of, <which> ~ <be> <det>? ~ made of,
        what ~ breed,
        ^spot any|a|an,
        ^<which> shape|material|texture|pattern|breed is|are the
        """,
    ),
    **_each(
        13,
        """
        can you spot|see|find|notice a|an|any,
        describe the ~ <look>|colour|clothes|clothing|outfit|appearance, describe <det> ~ <person>,
        colour is|are used|chosen for, describe <det> ~ <look>,
        best describes|describe the ~ <look>,
        how thick|wide|thin|heavy|steep|narrow|full|clean|dirty|ripe|fresh <be>
        """,
    ),
    **_each(
        12,
        """
        what|which organism <be>$, what|which organism <be> shown|pictured|this|that|it,
        what|which creature <be>, <state>$, shut|open|closed|locked|unlocked$,
        what|which make|model of, got on her|his|their|its|him,
        <which> of the ~ is
        <state>|larger|bigger|smaller|taller|shorter|thinner|thicker|older|younger
        """,
    ),
    **_each(
        11,
        """
        what|who <be> <det>? ~ looking at, left|right handed, clock or, or ~ mirror, <be> it a|an,
        what <be> inside|in the|his|her, what covers, <which> ~ <be> <det>? ~ <hold>, the make of,
        look|looks ~ or
        """,
    ),
    **_each(
        10,
        """
        <which> ~ colour, colour of, colours of, <which> shape, what pattern, <which> ~ material,
        made of, made out of, same colour, what|which size, how big, how tall, how large, how old,
        <which> ~ <look>, what <be> the ~ material, material of, what breed,
        name of <this> ~ <thing>, called ~ <thing>,
        name of it|this|that$,
        <thing> called$,
        ^any <thing>, ^any <person>
        """,
    ),
    **_each(
        9,
        """
        <have> <it> got a|an|any|some, <have> <the> ~ got a|an|any|some
        """,
    ),
    **_each(
        8,
        """
        <be> the ~ button|icon|toggle|slider|checkbox ~ greyed|grey|enabled|disabled|pressed|active,
        <have>|is got on
        """,
    ),
    **_each(
        7,
        """
        colour, coloured, shape, pattern, <be> the ~ <look>, <which> ~ <kind> of, <be> ~ made of,
        <which> ~ <thing>, <be> <det>? ~ wearing|holding|carrying, wearing, holding, carrying,
        is|are there a|an|any|some|no, do|can you|i see|spot|notice|find a|an|any,
        <be> <det>? ~ <colour>, <be> <det>? ~ <state>, look|looks|looking ~ <state>, dressed,
        <be> <det>? ~ doing, what|which one, what is this|that|it$, what are these|those|they$,
        ^what is it, ^what is this|that, does|do <the> ~ contain|have|show a|an|any
        """,
    ),
    **_each(
        4,
        """
        material, <colour> or, <state> or, or ~ <colour>, or ~ <state>, made from,
        what is this|that|it, what are these|those|they, identify, name the, contain, contains,
        present, visible, appear, appears, exist, exists, missing, appearance, <look>,
        does|do <det> ~ have, <have> on, look like, looks like, is|are there, <do> <det> ~ look,
        on or off, <be> <det>? ~ <hold>, be seen
        """,
    ),
    **_each(
        3,
        """
        left|right hand|arm|leg|foot|eye|shoulder|hands
        """,
    ),
    **_each(
        2.5,
        """
        <colour>, <state>, <kind> of, <hold>, <thing>
        """,
    ),
    **_each(
        1,
        """
        open, any, who is, what is the, is, are, was, were, does, do, did, what, who, which, has,
        have, can, on$, off$
        """,
    ),
}

_GENERAL = {
    **_each(
        32,
        """
        why did|do|are you ~ stop|answer|say|think|change|refuse|ignore,
        why did you ~ stop|answer|say, ^what now$, can you do with, that is it from|all, model am i,
        ^with this one$,
        ^a|another|some|any ~ joke|jokes|riddle|riddles, ^sing, ^joke,
        why not$, ^so what$, what did you ~ say|mean, how ~ are you, our ~
        chat|conversation|discussion,
        what did you just ~ say|mean
        """,
    ),
    **_each(
        30,
        """
        say|repeat that|it in|again|more
        """,
    ),
    **_each(
        24,
        """
        where|when|why|what do you ~ live|work|come|like|want|sleep|feel, i ~ feel|feeling, i am ~
        feeling, your
        favourite|favorite|limits|limitations|purpose|creator|maker|developer|version|age|birthday,
        ^night$,
        how is it going, that is|was the? wrong|right|correct ~ answer, what is up$, do you know$,
        in other words,
        ^what are you$, i|we ~ call you, the other one$
        """,
    ),
    **_each(
        20,
        """
        ^what do you think$, ^are you, ^who are you, ^who made you, assistance, anyone there, ^go
        on$, ^go ahead$, ^continue$, ^what can you do, ^do you speak|remember|like|have, ^try
        again$, ^your name, ^what is your name, ^how are you, ^can you help, ^never mind, ^forget
        it, ^keep going$, ^and$, ^any thoughts, a question about, be helpful, ^see
        images|pictures|photos$, ^with <det> ~ <picture>$, have a ~ question, been ~ helpful, ^with
        this|that|it|something|one$, about yourself, your opinion, ^this|the|my ~ <picture>$, that
        is all, cheers, nice one, what else$, take a look, look at this$, ^look$, much appreciated,
        appreciate, ^good|morning|afternoon|evening$, ^good morning|afternoon|evening|day, any
        feedback, helpful, ^do something, ^for me$, start$, ^begin$, i am back, so much$,
        ^can|could|would|will you look|check|see, ^look at, ^check this|it|that, ^have a look, ^see
        the|my|this ~ <picture>, ^you are, which|what model are you, able to
        understand|see|read|process, your
        answer|answers|opinion|thoughts|view|help|name|reply|response|time, ^what do you make of,
        that is not right|correct|true|it, that is wrong|right|great|good|fine|enough|interesting,
        you are wrong|right|welcome, ready, upload, ^let is continue|move|start|go, ^can|could we|i
        continue|start|ask|go|proceed|try, can i ask, i ask you, ^more$, i understand$, i do not
        understand, makes sense, another|wrong|next ~ <picture>, ^i
        have|will|send|sent|attached|uploaded a|an|the|my|another ~ <picture>, ^have a ~ <picture>,
        send another, understand ~ german|french|english, do you understand, ^is anybody|anyone
        there, good|great|nice|well job|work|bot|done, do you agree, what is next$, ^next$, say that
        again, ^elaborate, to elaborate, and elaborate, you elaborate, are you sure, any other
        comments, some help, assist, attached ~ file|picture|image|photo, how can you ~ help, what
        are you able, i have ~ question|questions, have some|a|another ~ question|questions, ^some|a
        ~ question|questions$, well done, start over, ^wait$, ^do it again, answer me, from now on,
        next time, that again, again in, once more, one more time|go|try, another go|try, ^make|keep
        it|that|this|them ~ <manner>, be ~ <manner>, more <manner>$, a bit|little ~ <manner>,
        your|last|previous ~ <answer>, answer|reply|respond|write|speak|talk|chat|continue ~ in
        <language>, rephrase, reword, paraphrase, ^rewrite it|that|this|your, ^shorten, how do you ~
        work|know|do|feel, ^i am ~
        bored|tired|sad|happy|hungry|confused|lost|busy|fine|good|sorry|done|ready, ^i ~
        agree|disagree, do not ~ agree|understand|follow$, ^i ~ love|like|hate it|that|you|this$,
        ^talk|chat, ^good night, a ~ good|nice|lovely|great ~ day|evening|night|weekend|time$, you ~
        mean$, you ~ misread|misunderstood|missed|forgot|told, you made a|another ~ mistake|error, i
        will ~ be|come back, <made>|made|trained|programmed you
        """,
    ),
    **_each(
        16,
        """
        ^what is|are your, ^something|anything else, ask|about something|anything else, simple|plain
        ~ language, this ~ conversation|chat
        """,
    ),
    **_each(
        8,
        """
        ^help$
        """,
    ),
}

_SPELLING = {
    "color": "colour",
    "colors": "colour",
    "colours": "colour",
    "colour": "colour",
    "colored": "coloured",
    "gray": "grey",
    "center": "centre",
    "whats": "what is",
    "wats": "what is",
    "wat": "what",
    "wot": "what",
    "wheres": "where is",
    "whos": "who is",
    "hows": "how is",
    "whens": "when is",
    "theres": "there is",
    "thats": "that is",
    "its": "its",
    "isnt": "is not",
    "isn": "is not",
    "aren": "are not",
    "arent": "are not",
    "wasn": "was not",
    "doesn": "does not",
    "doesnt": "does not",
    "don": "do not",
    "dont": "do not",
    "didn": "did not",
    "hasn": "has not",
    "haven": "have not",
    "couldn": "could not",
    "wouldn": "would not",
    "shouldn": "should not",
    "won": "will not",
    "cant": "can not",
    "cannot": "can not",
    "re": "are",
    "r": "are",
    "u": "you",
    "ur": "your",
    "pls": "please",
    "plz": "please",
    "wanna": "want to",
    "gonna": "going to",
    "gimme": "give me",
    "lemme": "let me",
    "rn": "now",
    "summarize": "summarise",
    "symbolize": "symbolise",
    "symbolizes": "symbolises",
    "humor": "humour",
    "humorous": "funny",
    "labeled": "labelled",
    "coords": "coordinates",
    "pics": "pictures",
    "descibe": "describe",
    "discribe": "describe",
    "wich": "which",
    "meny": "many",
    "howmany": "how many",
    "ppl": "people",
    "im": "i am",
    "ive": "i have",
    "youre": "you are",
    "theyre": "they are",
    "hes": "he is",
    "shes": "she is",
    "whys": "why is",
    "hasnt": "has not",
    "havent": "have not",
    "wont": "will not",
    "wouldnt": "would not",
    "couldnt": "could not",
    "shouldnt": "should not",
    "whereabout": "whereabouts",
}


def _slips(word: str) -> set[str]:
    """Return ``word`` with a letter left out, doubled or swapped with the next one."""
    pairs = [(word[:place], word[place:]) for place in range(len(word))]
    left_out = {head + tail[1:] for head, tail in pairs if head}
    doubled = {head + tail[0] + tail for head, tail in pairs}
    swapped = {head + tail[1] + tail[0] + tail[2:] for head, tail in pairs if len(tail) > 1}
    return (left_out | doubled | swapped) - {word}


# Slips that are words themselves.
_REAL_WORDS = frozenset(_words("were thee three ho man may blow locate"))
for _word in _words(
    """
    what where which there how many people picture image photo colour color describe count behind
    between under right number written caption weather happening material shape wearing standing
    animal background explain visible beside above below located
    """
):
    for _slip in sorted(_slips(_word) - _REAL_WORDS):
        _SPELLING.setdefault(_slip, _SPELLING.get(_word, _word))

_OPENINGS = _list(
    """
    and, so, but, or, ok, okay, hi, hey, hello, well, now, then, also, oh, hmm, hm, yes, no, right,
    great, cool, nice, thanks, thank you, please, kindly, just, quick question, question, anyway,
    not, sorry, first, finally, actually, really, exactly, out of curiosity, honestly,
    my ~ asks|asked|wonders|wondered if|whether?, my ~ wants|wanted to know if|whether?,
    my ~ keeps asking if|whether?, i think|believe|guess|suppose|reckon, perhaps,
    sorry to bother|disturb|ask|trouble you?, would you happen to know if|whether?,
    i would|d be ~ grateful|thankful|obliged if you could|would ~ tell|show|give me?,
    i would|d ~ appreciate it if you could|would ~ tell|show|give me?,
    would|could it be possible to ~ tell|say, is it possible to ~ tell|say if|whether?,
    any chance you can|could ~ tell|give|show me?, if you could|would ~ tell|show|give me?,
    perfect, lovely, good, i see, interesting, got it, alright, all right, again, next, yeah, yep,
    can|could|would|will you ~ tell|show|give|help|let me|us?, you, can|could|would you,
    are you able to, would you mind, be so kind as to, i would|d like you to, as to,
    tell me|us if|whether?, let me|us know if|whether?, show me, give me, help me, help me out,
    help us, do you ~ know if|whether?, you ~ know if|whether?, know if|whether?, happen to know,
    any idea if|whether?, any clue if|whether?, i wonder if|whether?, wonder if|whether?,
    i was|am wondering if|whether?, wondering if|whether?, i am|would|d be? curious if|whether?,
    curious if|whether?, i ~ want|need|like|love to know|hear|learn|see|understand if|whether?,
    want|need|like|love to know|learn|find if|whether?,
    i am ~ trying to ~ see|tell|find|work|figure out?, i can not ~ tell|see|say if|whether?,
    can not ~ tell|see|say if|whether?, not sure if|whether?, check if|whether?, see if|whether?,
    find out if|whether?, say if|whether?, i need, i need you to, i want, i want you to, i d like,
    i would like, let is, try to, i do not know if|whether?, do not know if|whether?,
    would you say, do you think, in your opinion, is it true|correct that, is it the case that,
    am i right that, can you make out, as far as you can tell, judging by|from the ~ <picture>,
    based on the|this ~ <picture>, according to the|this ~ <picture>,
    in|on|from|for|at the|this ~ <picture>, looking at the|this ~ <picture>, from what you can see,
    given the|this ~ <picture>, if you look at the|this ~ <picture>, one more thing, last one,
    whether, if you can, if possible, human, user, my question is, the question is, here is
    """
)

_ASIDES = _list(
    """
    answer, answers, respond, reply, choose, select the ~ option|answer|letter, select one, pick,
    use a single, give your answer, keep it, keep the answer, be brief, be concise,
    no explanation, one word, yes or no, provide a short answer, provide the ~ letter|option,
    your answer, give a short answer, give a one word, give the letter, only the letter,
    just the letter, option letter, no need to
    """
)

_NEUTRAL = _list(
    """
    in|on|from|within <the> ~ <picture>, in|on|from|within a|an ~ <picture>,
    shown|pictured|seen|depicted|displayed|visible|appearing in|on <the> ~ <picture>, all right,
    right now, left over, single word or phrase, from this|that|your|my angle,
    am i right|wrong|correct,
    not|without coordinates|count|counting|read|reading|describe|describing|explain|explaining
    """
)

DEFAULT_RULES: dict[str, Any] = {
    "format": 2,
    "fallback": "general",
    "spelling": _SPELLING,
    "classes": _CLASSES,
    "openings": _OPENINGS,
    "asides": _ASIDES,
    "categories": {
        "counting": _COUNTING,
        "ocr": _OCR,
        "knowledge": _KNOWLEDGE,
        "spatial": _SPATIAL,
        "scene": _SCENE,
        "attribute": _ATTRIBUTE,
        "general": _GENERAL,
    },
    "neutral": _NEUTRAL,
}
